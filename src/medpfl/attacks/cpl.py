"""Client privacy leakage."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.matching.labels import LastLayer
from medpfl.attacks.matching.objectives import SquaredDistance
from medpfl.attacks.matching.recipe import Recipe
from medpfl.attacks.matching.starts import Patterned
from medpfl.attacks.optimize.coordinates import Pixels
from medpfl.attacks.optimize.lbfgs import LBFGS

__all__ = ["CPL"]


@dataclass(frozen=True, repr=False)
class CPL(Recipe):
    """As iDLG, from a patterned start: a random 16 x 16 tile, repeated.

    Source: Wei et al., "A Framework for Evaluating Client Privacy Leakages in Federated Learning", ESORICS
    2020 (arXiv:2004.10397), algorithm 2 and section 4.2.
    Needs: the update, the plan, the model.
    Deviates: as `iDLG`, but for the distance, which is the paper's own, unweighted, and for the basis, which is
    that of pixels, without a warm-up. Starts that end in a poor minimum are replaced by new ones, up to `restarts`.
    The paper's extra distance of the model's output from the label vanishes with the label inferred, and is left
    out.
    """

    steps: int = 300
    restarts: int = 4
    tile: int = 16
    tolerance: float = 1e-11

    def matching(self) -> GradientMatching:
        """The search that it is."""
        return GradientMatching(
            objective=SquaredDistance("none"),
            start=Patterned(self.tile),
            labels=LastLayer(),
            basis=Pixels(),
            warmup=(),
            optimizer=LBFGS(tolerance=self.tolerance, patience=40),
            enough=1e-9,
            restarts=self.restarts,
            steps=self.steps,
        )
