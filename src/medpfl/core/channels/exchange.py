"""The server's view of a round under secure aggregation: masked messages and the mean update."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from medpfl.core.types import Update

__all__ = ["Exchange", "MaskedVector"]


@dataclass(frozen=True, eq=False)
class MaskedVector:
    """One client's masked message. It is no `Update`: without the masks it says nothing about the update.

    Attributes:
        values: (1 + size,) integers in [0, modulus): the weight, then all coordinates.
        modulus: modulus of the sum.
        num_samples: number of samples, sent in clear as in Flower.
    """

    values: Tensor
    modulus: int
    num_samples: int


@dataclass(frozen=True, eq=False)
class Exchange:
    """The server's view at the end of a round with several clients.

    Attributes:
        masked: masked messages of the clients that stayed, by client position; empty if the server sees none.
        dropped: positions of the clients that dropped out and are not in the mean.
        mean: mean update of the clients that stayed, weighted by their numbers of samples.
    """

    masked: dict[int, MaskedVector]
    dropped: tuple[int, ...]
    mean: Update
