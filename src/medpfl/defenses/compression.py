"""Shared code of update compressors: groups of coordinates, selection, and error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medpfl.core.channels.decoding import certain
from medpfl.core.errors import InputError
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Tensors, Update

__all__ = [
    "Compressor",
    "Scope",
    "Sparsifier",
    "certain",
    "check_scope",
    "flat",
    "kept_count",
    "largest",
    "rounding_variance",
    "unflat",
]

Scope = Literal["global", "layer"]
"""``"global"``: the whole update is one group of coordinates; ``"layer"``: each tensor is a group."""


class Compressor(Defense):
    """A defense that sends a compressed update and may carry the rest over to the next round.

    Attributes:
        feedback: error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847, algorithm 1): the part
            that was not sent is added to the next round's update before compression. The server cannot know this
            remainder, so the disclosed channel is exact only in a client's first round.
    """

    feedback: bool

    def compress(self, tensors: Tensors, generator: torch.Generator) -> Tensors:
        """Return the compressed tensors."""
        raise NotImplementedError

    def init(self) -> State:
        """Return an empty remainder if feedback is on, otherwise an empty state."""
        return {"owed": {}} if self.feedback else {}

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Compress the update; with feedback, add the remainder of earlier rounds and store the new one."""
        if not self.feedback:
            return value.replace(self.compress(value.tensors, generator)), state
        owed = state["owed"]
        whole = {name: t + owed[name].to(t) if name in owed else t for name, t in value.tensors.items()}
        sent = self.compress(whole, generator)
        return value.replace(sent), {**state, "owed": {name: t - sent[name] for name, t in whole.items()}}


@dataclass(frozen=True, repr=False)
class Sparsifier(Compressor):
    """A compressor that sends a share of the coordinates, and zeros for the others.

    Attributes:
        keep: the share of coordinates to send, above 0 and at most 1; at least one is sent.
        scope: ``"global"`` applies the share to the whole update, ``"layer"`` to each tensor.
        feedback: see `Compressor`.

    Raises:
        InputError: if `keep` is out of range, or `scope` is unknown.
    """

    keep: float = shown(0.1)
    scope: Scope = "global"
    feedback: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"keep is {self.keep}: it must be above 0 and at most 1")
        check_scope(self.scope)


def check_scope(scope: str) -> None:
    """Raise `InputError` unless `scope` is a `Scope`."""
    if scope not in ("global", "layer"):
        raise InputError(f"scope is '{scope}': choose 'global' or 'layer'")


def flat(tensors: Tensors, scope: Scope) -> list[Tensor]:
    """Return each group's coordinates (size,): one group for the whole update, or one per tensor."""
    rows = [t.flatten() for t in tensors.values()]
    return rows if scope == "layer" else [torch.cat(rows)]


def unflat(groups: list[Tensor], like: Tensors) -> dict[str, Tensor]:
    """Return the groups from `flat` in the shapes of `like`; the groups' dtype is kept."""
    parts = torch.cat(groups).split([t.numel() for t in like.values()])
    return {name: part.view_as(t) for part, (name, t) in zip(parts, like.items(), strict=True)}


def kept_count(keep: float, size: int) -> int:
    """Return how many of `size` coordinates to keep: the share, rounded, but at least 1."""
    return max(1, round(keep * size))


def largest(group: Tensor, keep: float) -> Tensor:
    """Return a mask (size,), True for the share `keep` of largest magnitude; earlier positions win ties."""
    chosen = torch.zeros_like(group, dtype=torch.bool)
    order = group.abs().argsort(descending=True, stable=True)
    return chosen.index_fill(0, order[: kept_count(keep, len(group))], True)


def rounding_variance(sent: Tensor, step: float, clients: int = 1) -> float:
    """Return the mean variance of unbiased random rounding over one tensor; 0 if `step` is 0.

    A client's coordinate x below the step is rounded up with probability ``|x| / step``, so its variance is nearly
    ``step |x|``. Larger coordinates have a variance of ``step^2 / 6`` on average. The estimate counts one more
    coordinate as rounded up than it sees, so that a tensor rounded to all zeros is not taken for a tensor of zeros.

    Args:
        sent: one tensor after rounding, or its mean over several clients.
        step: how far one client's rounding moves `sent`; in a mean, the client's own step times its share.
        clients: number of clients in the mean.
    """
    size = sent.abs().double().flatten()
    small = size[size < 1.5 * clients * step]
    dense = clients * step**2 / 6
    if not len(small):
        return dense
    sparse = min(step * (float(small.sum()) + step) / len(small), dense)
    return (len(small) * sparse + (len(size) - len(small)) * dense) / len(size)
