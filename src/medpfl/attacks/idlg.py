"""Improved deep leakage from gradients."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.matching.labels import LastLayer
from medpfl.attacks.matching.recipe import Recipe
from medpfl.attacks.matching.starts import Normal, Start
from medpfl.attacks.optimize.lbfgs import LBFGS

__all__ = ["iDLG"]


@dataclass(frozen=True, repr=False)
class iDLG(Recipe):
    """Reads the label from the last layer's gradient, then optimizes the images by L-BFGS.

    Source: Zhao, Mopuri and Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020 (arXiv:2001.02610).
    Needs: the update, the plan, the model.
    Start: independent standard normal pixels; with ``start=Analytic()`` the images of `RGAP`.
    Deviates: as `DLG`; the last bias gives not only the label but y - p, where the wire shows it exactly
    (`medpfl.attacks.matching.label_targets`); labels of batches above 1 are inferred as counts, see
    `medpfl.attacks.matching.labels.LastLayer` (the paper has batches of 1 only).
    """

    steps: int = 1000
    restarts: int = 1
    tolerance: float = 1e-10
    start: Start = Normal()

    def matching(self) -> GradientMatching:
        """The search that it is."""
        return GradientMatching(
            start=self.start,
            labels=LastLayer(),
            optimizer=LBFGS(tolerance=self.tolerance),
            restarts=self.restarts,
            steps=self.steps,
        )
