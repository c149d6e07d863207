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
    """Variant of iDLG with a patterned initial image: a random 16 x 16 tile, repeated.

    Source: Wei et al., "A Framework for Evaluating Client Privacy Leakages in Federated Learning", ESORICS 2020
    (arXiv:2004.10397), algorithm 2 and section 4.2.
    Needs: the update, the plan, the model.
    Deviates: as `iDLG`, with three exceptions: the distance is the paper's own, without weights; the variables are
    pixels; there is no warm-up. A search that ends in a poor minimum is followed by a restart, up to `restarts`. The
    paper's extra term, the distance between the model's output and the label, vanishes once the label is inferred, and
    is left out.
    """

    steps: int = 300
    restarts: int = 4
    tile: int = 16
    tolerance: float = 1e-11

    def matching(self) -> GradientMatching:
        """Return the search with these settings."""
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
