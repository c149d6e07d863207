"""The check of a record against its truth: right, wrong with a cause, or not verifiable beyond what is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medpfl.core.errors import InputError
from medpfl.core.records.record import Record
from medpfl.core.records.steps import Step, Steps
from medpfl.core.records.truth import Truth
from medpfl.core.types import Tensors, Weights
from medpfl.core.user_code.copies import copied
from medpfl.recording.folder import Neighbors
from medpfl.recording.replay import Replayed, counters, replay

__all__ = ["DRAWS", "RIGHT", "Case", "Check", "Finding", "buffer_gaps", "contradictions", "tolerance_of"]

RIGHT = 1e-5
"""Largest relative difference of a right record in float32, apart from the rounding of its numbers."""
_NEAR, _NEAR_ELSEWHERE = 1e-3, 1e-2
"""A difference below this that no other cause explains is rounding by another kernel, or by a GPU (TF32)."""
_SEED = 7_340_033
DRAWS, _FEW = 6, 3
"""Replays with different orders if the client's own order is unknown: of the record's plan, and of each other cause."""


@dataclass(frozen=True)
class Finding:
    """A cause of a wrong record, and the remedy."""

    cause: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.cause}: {self.remedy}" if self.remedy else self.cause


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        verdict: ``right``, ``wrong`` or ``unverified``.
        difference: relative difference between the record and the nearest replay; ``None`` without a replay.
        spread: relative difference between two replays, if the order or other draws are unknown.
        finding: the likeliest cause of a wrong record.
        facts: what was checked and agrees.
        open: what could not be verified.
    """

    verdict: Literal["right", "wrong", "unverified"]
    difference: float | None = None
    spread: float = 0.0
    finding: Finding | None = None
    facts: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    def raise_if_wrong(self) -> None:
        """Raise `InputError` with the cause if the record is wrong."""
        if self.verdict == "wrong":
            raise InputError(f"the record is wrong, so no attack was run: {self.finding}")


@dataclass(frozen=True, eq=False)
class Case:
    """A record under the network's names and dtypes, with its truth as it enters the model.

    Attributes:
        network: the client's model.
        record: the record.
        truth: the truth, in the model's own range of pixels.
        others: other records of the same federation, by name.
    """

    network: nn.Module
    record: Record
    truth: Truth
    others: Mapping[str, Record] | Neighbors = field(default_factory=dict)

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
        """Return the replay of the training, with some of its parts replaced; `draws` of them if draws are unknown."""
        taken = list(steps or self.steps.steps)
        images = self.truth.images if images is None else images
        labels = self.truth.labels if labels is None else labels
        made = []
        for draw in range(1 if self._known(taken) else draws):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_SEED + draw)
                batches = [(images[i], labels[i]) for i in self._indices(taken)]
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


def tolerance_of(record: Record) -> float:
    """Return the largest relative difference that rounding explains: of the weights, and of the sent numbers."""
    sent, start = record.update, record.weights.parameters
    size = sum(float(t.double().square().sum()) for t in sent.tensors.values()) ** 0.5
    whole = sum(float(t.double().square().sum()) for t in start.values()) ** 0.5
    coarse = max((torch.finfo(t.dtype).eps for t in (*start.values(), *sent.tensors.values())), default=0.0)
    rounding = coarse * (whole if sent.kind == "difference" else size)
    return RIGHT + 2 * rounding / max(size, 1e-30)


def buffer_gaps(sent: Tensors, replayed: Tensors) -> dict[str, float]:
    """Return the relative difference of each sent buffer from the replay's; counters compare as integers."""
    found = {}
    for name, own in replayed.items():
        if name not in sent:
            continue
        if not own.is_floating_point():
            found[name] = 0.0 if torch.equal(sent[name].to(own.dtype), own) else 1.0
            continue
        size = float(own.double().norm())
        found[name] = float((sent[name].double() - own.double()).norm()) / max(size, 1e-3 * own.numel() ** 0.5)
    return found


def contradictions(record: Record, network: nn.Module | None = None) -> Iterator[Finding]:
    """Yield what a record contradicts by itself, without images: counters, variances, and numbers of images."""
    if not record.steps.are_known:
        return
    after, before = record.update.buffers or {}, record.weights.buffers
    for name, count in counters(after).items():
        if name not in before or count.numel() != 1:
            continue
        yield from _counted(record, name, float(before[name]), float(count))
    layers = {} if network is None else {n: m for n, m in network.named_modules() if isinstance(m, _BatchNorm)}
    for name, value in after.items():
        if not name.endswith("running_var") or name not in before or not value.is_floating_point():
            continue
        momentum = getattr(layers.get(name.removesuffix(".running_var")), "momentum", None) or 0.0
        least = before[name].double() * (1 - momentum) ** len(record.steps.steps) if momentum else 0.0
        if bool((value.double() < least * (1 - 1e-4) - 1e-12).any()):
            yield Finding(
                f"the variance '{name}' after the training is smaller than any training from these buffers allows",
                "send the buffers' values after the training, not their differences, and before any noise",
            )


def _counted(record: Record, name: str, before: float, after: float) -> Iterator[Finding]:
    """Yield a contradiction between a batch norm's counter and the number of steps."""
    layer, steps = name.rpartition(".")[0], record.steps.steps
    expected = sum(step.modes.get(layer, step.training) for step in steps)
    if after % 1:
        yield Finding(
            f"the counter '{name}' is {after:g} after the training, which is an average over several clients",
            "record one client's update before the server averages",
        )
        return
    counted = int(after) - int(before)
    if counted == expected:
        return
    if int(after) == expected and int(before):
        yield Finding(
            f"the buffers are differences: the counter '{name}' is {int(after)} after the training and "
            f"{int(before)} before",
            "record the buffers' values after the training",
        )
        return
    yield Finding(_steps_cause(record, counted, expected, name), "give the plan that the client followed")


def _steps_cause(record: Record, counted: int, expected: int, name: str) -> str:
    said = f"the counter '{name}' says {counted} steps, the record's plan {expected}"
    per_epoch = _per_epoch(record)
    if counted == 0:
        return f"the weights before the training are those of another round, or the layer was in eval mode ({said})"
    if per_epoch and counted % per_epoch == 0 and counted > 0:
        return f"the client trained for {counted // per_epoch} epochs, not {expected // per_epoch} ({said})"
    return said


def _per_epoch(record: Record) -> int:
    """Return the number of steps in an epoch; 0 if it is unknown."""
    try:
        return record.regular_plan().batches if record.steps.steps[0].optimizer else 0
    except InputError:
        return 0


def near(record: Record, difference: float, tolerance: float) -> bool:
    """Return True if a difference can be rounding by another device or kernel."""
    elsewhere = record.source is not None and record.source.versions.get("device", "cpu") != "cpu"
    return difference <= max(tolerance, _NEAR_ELSEWHERE if elsewhere else _NEAR)
