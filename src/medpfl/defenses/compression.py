"""What compressors of an update have in common: how coordinates are grouped and chosen, and error feedback."""

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
"""``"global"``: all coordinates of the update together; ``"layer"``: each tensor by itself."""


class Compressor(Defense):
    """Sends less than the update, and may remember the rest for the next round.

    Attributes:
        feedback: error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847, algorithm 1):
            what was not sent is added to the next round's update before it is compressed. The server cannot
            know that remainder: what is disclosed is exact in a client's first round only.
    """

    feedback: bool

    def compress(self, tensors: Tensors, generator: torch.Generator) -> Tensors:
        """What is sent in place of the tensors."""
        raise NotImplementedError

    def init(self) -> State:
        """With feedback: nothing is owed yet."""
        return {"owed": {}} if self.feedback else {}

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """The compressed update; with feedback, of the update and what is owed from earlier rounds."""
        if not self.feedback:
            return value.replace(self.compress(value.tensors, generator)), state
        owed = state["owed"]
        whole = {name: t + owed[name].to(t) if name in owed else t for name, t in value.tensors.items()}
        sent = self.compress(whole, generator)
        return value.replace(sent), {**state, "owed": {name: t - sent[name] for name, t in whole.items()}}


@dataclass(frozen=True, repr=False)
class Sparsifier(Compressor):
    """Sends a share of the coordinates and zeros for the others.

    Attributes:
        keep: the share of coordinates that survive, above 0 and at most 1; at least one does.
        scope: of the whole update, or of each tensor.
        feedback: see `Compressor`.

    Raises:
        InputError: `keep` out of its range, or another word for `scope`.
    """

    keep: float = shown(0.1)
    scope: Scope = "global"
    feedback: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"keep is {self.keep}: it must be above 0 and at most 1")
        check_scope(self.scope)


def check_scope(scope: str) -> None:
    """Raises `InputError` unless it is a `Scope`."""
    if scope not in ("global", "layer"):
        raise InputError(f"scope is '{scope}': choose 'global' or 'layer'")


def flat(tensors: Tensors, scope: Scope) -> list[Tensor]:
    """The coordinates (size,) of each group: one group, or one a tensor."""
    rows = [t.flatten() for t in tensors.values()]
    return rows if scope == "layer" else [torch.cat(rows)]


def unflat(groups: list[Tensor], like: Tensors) -> dict[str, Tensor]:
    """The groups of `flat` back in the shapes of `like`; dtypes are the groups'."""
    parts = torch.cat(groups).split([t.numel() for t in like.values()])
    return {name: part.view_as(t) for part, (name, t) in zip(parts, like.items(), strict=True)}


def kept_count(keep: float, size: int) -> int:
    """Coordinates kept of `size`: the nearest number to the share, at least 1."""
    return max(1, round(keep * size))


def largest(group: Tensor, keep: float) -> Tensor:
    """Whether each coordinate (size,) is among the share `keep` of largest magnitude; ties go by position."""
    chosen = torch.zeros_like(group, dtype=torch.bool)
    order = group.abs().argsort(descending=True, stable=True)
    return chosen.index_fill(0, order[: kept_count(keep, len(group))], True)


def rounding_variance(sent: Tensor, step: float, clients: int = 1) -> float:
    """The variance of unbiased random rounding, on the average over a tensor; 0 where the step is 0.

    A coordinate x of one client that is below the step is rounded up with probability ``|x| / step``: its variance is
    ``step |x|`` nearly. Of others it is ``step^2 / 6`` on the average. One more coordinate is counted as rounded up
    than was, so that a tensor that was rounded to zeros is not taken for one.

    Args:
        sent: one tensor after rounding; of several clients, the mean.
        step: by which one client's rounding moves `sent`: of a mean, a share of the client's own step.
        clients: in the mean.
    """
    size = sent.abs().double().flatten()
    small = size[size < 1.5 * clients * step]
    dense = clients * step**2 / 6
    if not len(small):
        return dense
    sparse = min(step * (float(small.sum()) + step) / len(small), dense)
    return (len(small) * sparse + (len(size) - len(small)) * dense) / len(size)
