"""Messages and mean that a server sees of clients whose updates are summed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from medpfl.core.types import Update

__all__ = ["Exchange", "MaskedVector"]


@dataclass(frozen=True, eq=False)
class MaskedVector:
    """One client's message. It is no `Update`: without the masks it says nothing of one.

    Attributes:
        values: (1 + size,) integers in [0, modulus): the weight, then all coordinates.
        modulus: what they are added up by.
        num_samples: travels in clear beside it, as in Flower.
    """

    values: Tensor
    modulus: int
    num_samples: int


@dataclass(frozen=True, eq=False)
class Exchange:
    """A round of several clients as the server has it at the end.

    Attributes:
        masked: the message of each client that stayed, by its place among the clients; empty where none is seen.
        dropped: places of those that fell silent, and are not in the mean.
        mean: the mean update of those that stayed, weighted by their numbers of samples.
    """

    masked: dict[int, MaskedVector]
    dropped: tuple[int, ...]
    mean: Update
