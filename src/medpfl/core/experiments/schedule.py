"""The settings of a federated training across rounds. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.core.experiments import limits
from medpfl.core.experiments.groups import Criteria
from medpfl.core.experiments.options import Options, again, option

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule(Options):
    """Settings of a federated training across rounds.

    Attributes:
        rounds: number of training rounds, at least 1.
        fraction: share of the clients that take part in each round, above 0 and at most 1; at least one takes part.
        decay: factor applied to the learning rate after each round, above 0 and at most 1.
        server_momentum: momentum of the server's update to the global model, at least 0 and less than 1.
        balance: True if clients sample their images evenly over their classes, repeating images of rare classes.
        augment: True if clients randomly shift, rotate, zoom and change the brightness of their images in each round,
            so that the model generalizes to other positions and exposures (`medpfl.data.augment`). An audit attacks
            the original images.
        delta: delta of the reported (epsilon, delta).

    Raises:
        InputError: a number is out of its range.
    """

    rounds: int = option(20, "number of training rounds", least=1, most=limits.ROUNDS)
    fraction: float = option(1.0, "share of the clients that take part in each round", above=0, most=1)
    decay: float = option(1.0, "factor applied to the learning rate after each round", above=0, most=1)
    server_momentum: float = option(0.0, "momentum of the server's update to the global model", least=0, below=1)
    balance: bool = option(False, "sample each client's images evenly over its classes")
    augment: bool = option(
        False, "randomly shift, rotate, zoom and change the brightness of the clients' images in each round"
    )
    delta: float = again(Criteria, "delta")
