"""How a training goes on from round to round. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import ROUNDS, check_whole

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """How long, how many, and how fast.

    Attributes:
        rounds: of training, at least 1.
        fraction: share of the clients that take part in a round, above 0 and at most 1; at least one does.
        decay: factor of the learning rate from round to round, above 0 and at most 1.
        server_momentum: of the global model's steps, at least 0 and less than 1.
        balance: whether clients draw their images evenly over the classes that they have, rare ones repeatedly.
        augment: whether clients move and shade their images anew in each round (`medpfl.data.augment`).
        delta: of epsilon.

    Raises:
        InputError: a number out of its range.
    """

    rounds: int = 20
    fraction: float = 1.0
    decay: float = 1.0
    server_momentum: float = 0.0
    balance: bool = False
    augment: bool = False
    delta: float = 1e-5

    def __post_init__(self) -> None:
        check_whole("rounds", self.rounds, 1, ROUNDS)
        for name in ("fraction", "decay"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be above 0 and at most 1")
        if not 0 <= self.server_momentum < 1:
            raise InputError(f"server_momentum is {self.server_momentum}: it must be at least 0 and less than 1")
        if not 0 < self.delta < 1:
            raise InputError(f"delta is {self.delta}: it must lie between 0 and 1")
