"""Stages before an attack proper."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.attacks.matching.objectives import Objective
from medpfl.attacks.matching.priors import NoPrior, Prior, Smoothness
from medpfl.core.errors import InputError
from medpfl.core.spec import Part

__all__ = ["WARM_UP", "Stage"]


@dataclass(frozen=True, repr=False)
class Stage(Part):
    """Some steps on an easier problem, whose result starts the next stage.

    Attributes:
        prior: in place of the attack's own.
        steps: at most so many.
        head: match the last layer's update only. That takes no derivative of the other layers' gradients, a
            third to a fifth of the cost, and it is what says most about the layer's inputs. Where the last
            layer's update is not its own (several local steps, a channel that mixes tensors) all are matched.
        objective: in place of the attack's own; ``None``: the attack's own.
        block: edge in pixels of the blocks that move as one (see `medpfl.attacks.optimize.coordinates.Blocks`); 1: the
            attack's own basis.
        share: of the attack's steps; ``None``: `steps`, a quarter of them at most.
    """

    prior: Prior = NoPrior()
    steps: int = 40
    head: bool = False
    objective: Objective | None = None
    block: int = 1
    share: float | None = None

    def __post_init__(self) -> None:
        if self.block < 1 or self.steps < 0 or not (self.share is None or 0 < self.share < 1):
            raise InputError("block must be at least 1, steps at least 0, and share between 0 and 1")

    def within(self, steps: int) -> int:
        """Of so many steps in all, those of this stage."""
        return min(self.steps, steps // 4) if self.share is None else int(self.share * steps)


WARM_UP = (Stage(Smoothness(1.0), 30, head=True), Stage(Smoothness(0.1), 10))
"""What an update says least about an image are its fine details. A rough start leaves them in the guess until the
very end; a smooth prior that is weakened and switched off as the fit improves takes them out first. The second stage
is short: most of its steps would be taken to fit what the prior says, and taken back after it."""
