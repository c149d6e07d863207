"""Deep leakage from gradients."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.matching.labels import Joint
from medpfl.attacks.matching.recipe import Recipe
from medpfl.attacks.matching.starts import Start, Suited
from medpfl.attacks.optimize.lbfgs import LBFGS

__all__ = ["DLG"]


@dataclass(frozen=True, repr=False)
class DLG(Recipe):
    """Joint optimization of images and soft labels with L-BFGS.

    Source: Zhu, Liu and Han, "Deep Leakage from Gradients", NeurIPS 2019 (arXiv:1906.08935), algorithm 1.
    Needs: the update, the plan, the model. Labels are optimized, or taken from the grant.
    Start: independent standard normal pixels and logits; for several local steps, nearly gray images
    (`medpfl.attacks.matching.starts.Suited`); with ``start=Analytic()`` the images found by `RGAP`.
    Deviates:

    - Each tensor's squared distance is divided by that tensor's root mean square in the sent update. The last layer's
      matrix counts twelvefold.
    - Images are optimized in a basis of scaled cosines (`medpfl.attacks.optimize.coordinates`).
    - Every iteration has a line search. The authors' L-BFGS (rate 1, no line search) can diverge.
    - Forty warm-up steps come first. Their prior favors smooth images, and the first thirty match only the last layer's
      update (`medpfl.attacks.matching.stages`).
    - Where the update is one gradient, the label variables stand for y - p directly, without a softmax. Their unit is
      the size of y - p in the last bias, and they are first fitted to that bias alone
      (`medpfl.attacks.matching.label_targets`).
    - A last layer with at least twice as many inputs as the image has pixels is matched alone.
    - `steps` counts single iterations (the authors: 300 calls of 20).
    """

    steps: int = 1000
    restarts: int = 1
    tolerance: float = 1e-10
    start: Start = Suited()

    def matching(self) -> GradientMatching:
        """Return the search with these settings."""
        return GradientMatching(
            start=self.start,
            labels=Joint(),
            optimizer=LBFGS(tolerance=self.tolerance),
            restarts=self.restarts,
            steps=self.steps,
        )
