"""Client privacy leakage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpfl.attacks.labels import LastLayer
from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.objectives import SquaredDistance
from medpfl.attacks.starts import Patterned
from medpfl.core.roles import Attack
from medpfl.core.types import Observation, Reconstruction

__all__ = ["CPL"]


@dataclass(frozen=True, repr=False)
class CPL(Attack):
    """As iDLG, from a patterned start: a random 16 x 16 tile, repeated.

    Source: Wei et al., "A Framework for Evaluating Client Privacy Leakages in Federated Learning", ESORICS
    2020 (arXiv:2004.10397), algorithm 2 and section 4.2.
    Needs: the update, the plan, the model.
    Deviates: as `iDLG`, but for the distance, which is the paper's own, unweighted. The paper's extra
    distance of the model's output from the label vanishes with the label inferred, and is left out.
    """

    steps: int = 600
    restarts: int = 1
    tile: int = 16

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """The attack."""
        start = Patterned(self.tile)
        attack = GradientMatching(
            objective=SquaredDistance("none"),
            start=start,
            labels=LastLayer(),
            restarts=self.restarts,
            steps=self.steps,
        )
        return attack(seen, generator)
