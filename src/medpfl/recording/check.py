"""The check of a record against its truth: right, wrong with a cause, or not verifiable beyond what is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.records.origin import CHECKPOINTS
from medpfl.core.records.record import Record
from medpfl.core.records.steps import Step, Steps
from medpfl.core.records.truth import Truth
from medpfl.core.types import Weights
from medpfl.core.user_code.copies import copied
from medpfl.core.user_code.strangers import explained
from medpfl.recording.folder import Neighbors
from medpfl.recording.replay import Replayed, replay

__all__ = ["DRAWS", "EQUAL", "Case", "Cause", "Check", "acting_in", "from_checkpoints", "is_zero", "watching"]

_SEED = 7_340_033
DRAWS, _FEW = 6, 3
"""Replays with different orders if the client's own order is unknown: of the record's plan, and of each other cause."""


@dataclass(frozen=True)
class Cause:
    """A cause of a wrong record, and the remedy."""

    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.remedy}" if self.remedy else self.text


EQUAL = Cause(
    "the update is exactly zero: the weights before the training and after it are equal",
    "record the weights before the training, and the update that the client sends after it",
)


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        verdict: ``right``, ``wrong`` or ``unverified``.
        difference: relative difference between the record and the nearest replay; ``None`` without a replay.
        spread: relative difference between two replays, if the order or other draws are unknown.
        cause: the likeliest cause of a wrong record.
        facts: what was checked and agrees.
        open: what could not be verified.
    """

    verdict: Literal["right", "wrong", "unverified"]
    difference: float | None = None
    spread: float = 0.0
    cause: Cause | None = None
    facts: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    def raise_if_wrong(self) -> None:
        """Raise `InputError` with the cause if the record is wrong."""
        if self.verdict == "wrong":
            raise InputError(f"the record is wrong, so no attack was run: {self.cause}")


@dataclass(frozen=True, eq=False)
class Case:
    """A record under the network's names and dtypes, with its truth as it enters the model.

    Attributes:
        network: the client's model.
        record: the record.
        truth: the truth, in the model's own range of pixels.
        others: other records of the same federation, by name.
        held: the record as it was read, if its dtypes are others.
    """

    network: nn.Module
    record: Record
    truth: Truth
    others: Mapping[str, Record] | Neighbors = field(default_factory=dict)
    held: Record | None = None

    @property
    def steps(self) -> Steps:
        """The client's steps."""
        return self.record.steps

    @property
    def exact(self) -> bool:
        """True if a replay needs no guess: the order is known or irrelevant, and dropout's draws are known."""
        return (self.truth.order is not None or self.one_batch) and not self.draws

    @property
    def one_batch(self) -> bool:
        """True if every step takes all images, so that their order does not matter."""
        count = len(self.truth.images)
        return self.steps.sampling == "shuffle" and all(step.images == count for step in self.steps.steps)

    @property
    def draws(self) -> bool:
        """True if layers draw numbers that the truth file does not determine."""
        drawing = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p for m in self.network.modules())
        return drawing and self.truth.generators is None and self._trains()

    def _trains(self) -> bool:
        return any(any(step.modes.values()) or (step.training and not step.modes) for step in self.steps.steps)

    @cached_property
    def _model(self) -> nn.Module:
        return copied(self.network, forget=True)

    def replays(
        self,
        *,
        draws: int = _FEW,
        steps: Sequence[Step] | None = None,
        weights: Weights | None = None,
        images: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> list[Replayed]:
        """Return the replay of the training, with some of its parts replaced; `draws` of them if draws are unknown.

        Raises:
            InputError: torch cannot repeat it, for example because of a label that the model does not have.
        """
        taken = list(steps or self.steps.steps)
        images = self.truth.images if images is None else images
        labels = self.truth.labels if labels is None else labels
        made = []
        for draw in range(1 if self._known(taken) else draws):
            with torch.random.fork_rng(devices=[]), explained("the record's training cannot be repeated"):
                torch.manual_seed(_SEED + draw)
                indices = list(self._indices(taken))
                batches = ((images[i], labels[i]) for i in indices)  # one in memory at a time
                generators = self.truth.generators if len(taken) == len(self.steps.steps) else None
                made.append(replay(self._model, weights or self.record.weights, taken, batches, generators))
        return made

    def _known(self, taken: Sequence[Step]) -> bool:
        if self.draws:
            return False
        count = len(self.truth.images)
        if self.steps.sampling == "shuffle" and all(step.images == count for step in taken):
            return True
        return self.truth.order is not None and sum(step.images for step in taken) <= len(self.truth.order)

    def _indices(self, taken: Sequence[Step]) -> Iterator[Tensor]:
        """Yield each step's images: by the client's order as far as it goes, then by new random orders."""
        count = len(self.truth.images)
        if self.steps.sampling == "poisson":
            rate = taken[0].images / count
            yield from ((torch.rand(count) < rate).nonzero()[:, 0] for _ in taken)
            return
        order = torch.arange(count) if self.one_batch else self.truth.order
        known = [] if order is None else order.tolist()
        place = 0
        for step in taken:
            while len(known) < place + step.images:
                known += torch.randperm(count).tolist()
            yield torch.tensor(known[place : place + step.images], dtype=torch.long)
            place += step.images


def is_zero(record: Record) -> bool:
    """Return True if an update is exactly zero."""
    return not any(bool(t.any()) for t in record.update.tensors.values())


def from_checkpoints(record: Record) -> bool:
    """Return True if a record was made from two states of a model, of which one may have been taken for the other."""
    return record.source is not None and record.source.framework == CHECKPOINTS


def watching(record: Record, text: str) -> str:
    """Return a remedy that needs a watch around the loop; ``""`` for checkpoints, whose owner may not have the loop."""
    return "" if from_checkpoints(record) else text


def acting_in(record: Record) -> tuple[str, ...]:
    """Return the filters, and the defense, that may have changed a record's update after the training."""
    return (*record.filters, *([record.defense] if record.defense else []))
