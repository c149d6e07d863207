"""Deep leakage from gradients."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.matching.labels import Joint
from medpfl.attacks.matching.recipe import Recipe
from medpfl.attacks.matching.starts import Normal, Start
from medpfl.attacks.optimize.lbfgs import LBFGS

__all__ = ["DLG"]


@dataclass(frozen=True, repr=False)
class DLG(Recipe):
    """Optimizes images and soft labels together by L-BFGS.

    Source: Zhu, Liu and Han, "Deep Leakage from Gradients", NeurIPS 2019 (arXiv:1906.08935), algorithm 1.
    Needs: the update, the plan, the model. Labels are optimized, or taken where granted.
    Start: independent standard normal pixels and logits; with ``start=Analytic()`` the images of `RGAP`.
    Deviates: the squared distance of each tensor is divided by the root mean square of that tensor's update, the last
    layer's matrix counting twelvefold; images move in a basis of scaled cosines
    (`medpfl.attacks.optimize.coordinates`); every iteration has a line search (the authors' L-BFGS, rate 1 without one,
    can diverge); forty steps with a prior for smooth images come first, thirty of them on the last layer's update only
    (`medpfl.attacks.matching.stages`); where the update is one gradient, not the softmax of the label variables is
    optimized but what it stands for, y - p, in units of what the last bias shows of it, first against that bias alone
    (`medpfl.attacks.matching.label_targets`); a last layer with at least twice as many inputs as the image has pixels
    is matched alone; `steps` counts single iterations (the authors': 300 calls of 20).
    """

    steps: int = 1000
    restarts: int = 1
    tolerance: float = 1e-10
    start: Start = Normal()

    def matching(self) -> GradientMatching:
        """The search that it is."""
        return GradientMatching(
            start=self.start,
            labels=Joint(),
            optimizer=LBFGS(tolerance=self.tolerance),
            restarts=self.restarts,
            steps=self.steps,
        )
