"""How a training goes on from round to round. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.core.experiments import limits
from medpfl.core.experiments.groups import Criteria
from medpfl.core.experiments.options import Options, again, option

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule(Options):
    """How long, how many, and how fast.

    Attributes:
        rounds: of training, at least 1.
        fraction: share of the clients that take part in a round, above 0 and at most 1; at least one does.
        decay: factor of the learning rate from round to round, above 0 and at most 1.
        server_momentum: of the global model's steps, at least 0 and less than 1.
        balance: whether clients draw their images evenly over the classes that they have, rare ones repeatedly.
        augment: whether clients shift, turn, zoom and shade their images at random, anew in each round, so that the
            model holds under other positions and exposures (`medpfl.data.augment`); an audit attacks images as they
            are.
        delta: of epsilon.

    Raises:
        InputError: a number out of its range.
    """

    rounds: int = option(20, "rounds of training", least=1, most=limits.ROUNDS)
    fraction: float = option(1.0, "share of the clients that take part in a round", above=0, most=1)
    decay: float = option(1.0, "factor of the learning rate from round to round", above=0, most=1)
    server_momentum: float = option(0.0, "momentum of the global model's steps", least=0, below=1)
    balance: bool = option(False, "clients draw their images evenly over their classes")
    augment: bool = option(False, "clients shift, turn, zoom and shade their images at random, anew in each round")
    delta: float = again(Criteria, "delta")
