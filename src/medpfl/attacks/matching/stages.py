"""Stages before the main search."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.attacks.matching.objectives import Objective
from medpfl.attacks.matching.priors import NoPrior, Prior, Smoothness
from medpfl.core.errors import InputError
from medpfl.core.spec import Part

__all__ = ["WARM_UP", "Stage"]


@dataclass(frozen=True, repr=False)
class Stage(Part):
    """A few steps on an easier problem. Its result starts the next stage.

    Attributes:
        prior: prior in place of the attack's own.
        steps: maximum steps.
        head: match only the last layer's update. This needs no derivative of the other layers' gradients, costs a third
            to a fifth, and reveals most about the layer's inputs. Where the last layer's update mixes with others
            (several local steps, a channel that mixes tensors), all layers are matched.
        objective: objective in place of the attack's own; ``None``: the attack's own.
        block: edge, in pixels, of blocks that move as one (see `medpfl.attacks.optimize.coordinates.Blocks`); 1: the
            attack's own basis.
        share: fraction of the attack's steps; ``None``: `steps`, at most a quarter of the attack's.
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
        """Return this stage's number of steps, given the total."""
        return min(self.steps, steps // 4) if self.share is None else int(self.share * steps)


WARM_UP = (Stage(Smoothness(1.0), 30, head=True), Stage(Smoothness(0.1), 10))
"""An update reveals least about an image's fine details. A rough initial image leaves its own details in the guess
until the very end. A smoothness prior that is weakened and then switched off removes them first. The second stage is
short: most of its steps would fit the prior and would have to be undone afterwards."""
