"""Improved deep leakage from gradients."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.matching.labels import LastLayer
from medpfl.attacks.matching.recipe import Recipe
from medpfl.attacks.matching.starts import Start, Suited
from medpfl.attacks.optimize.lbfgs import LBFGS

__all__ = ["iDLG"]


@dataclass(frozen=True, repr=False)
class iDLG(Recipe):
    """Label recovery from the last layer's gradient, then optimization of the images with L-BFGS.

    Source: Zhao, Mopuri and Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020 (arXiv:2001.02610).
    Needs: the update, the plan, the model.
    Start: independent standard normal pixels; for several local steps, nearly gray images
    (`medpfl.attacks.matching.starts.Suited`); with ``start=Analytic()`` the images found by `RGAP`.
    Deviates: as `DLG`. In addition, where the update shows y - p exactly, the last bias gives y - p and not only the
    label (`medpfl.attacks.matching.label_targets`). For batches, the attack infers how many images have each label (see
    `medpfl.attacks.matching.labels.LastLayer`); the paper covers only a batch size of 1.
    """

    steps: int = 1000
    restarts: int = 1
    tolerance: float = 1e-10
    start: Start = Suited()

    def matching(self) -> GradientMatching:
        """Return the search with these settings."""
        return GradientMatching(
            start=self.start,
            labels=LastLayer(),
            optimizer=LBFGS(tolerance=self.tolerance),
            restarts=self.restarts,
            steps=self.steps,
        )
