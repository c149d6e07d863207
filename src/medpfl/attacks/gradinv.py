"""Inverting gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.matching.constraints import Box
from medpfl.attacks.matching.labels import LastLayer
from medpfl.attacks.matching.objectives import Cosine
from medpfl.attacks.matching.priors import TotalVariation
from medpfl.attacks.matching.recipe import Recipe
from medpfl.attacks.matching.starts import Normal
from medpfl.attacks.optimize.coordinates import Pixels
from medpfl.attacks.optimize.optimizer import SignedAdam
from medpfl.core.roles import Attack

__all__ = ["TRAINED", "UNTRAINED", "GradInv"]

_DEEP = 2_000_000
"""Number of weight elements, biases excluded, above which a network may count as deep."""

_LAYERS = 10
"""Number of weight layers above which it does. Wide, shallow networks are attacked best with the settings for small
ones."""


@dataclass(frozen=True, repr=False)
class GradInv(Recipe):
    """Cosine distance plus total variation, minimized by Adam on the gradient's sign, with pixels kept in [0, 1].

    Source: Geiping, Bauermeister, Droege and Moeller, "Inverting Gradients", NeurIPS 2020 (arXiv:2003.14053), equation
    4; settings of Das, Amini and Wu (arXiv:2409.18907): total variation 1e-6 on untrained and 1e-1 on trained networks,
    rate 0.1 on normalized pixels, 8 restarts, 24,000 steps.
    Needs: the update, the plan, the model. Both papers give the labels to the attacker; here they are inferred unless
    granted.
    Deviates:

    - Pixels are not normalized, so the rate is in units of [0, 1].
    - Where the last bias shows y - p, it replaces the labels (`medpfl.attacks.matching.label_targets`).
    - The defaults suit small networks: one restart, 2,000 steps, no median filter (it hurts at 32 pixels).
    - `UNTRAINED` and `TRAINED` hold settings for deep networks. Their `largest`, `scope` and `schedule` are not from
      the papers, nor are `halving` and `patience`.

    Attributes:
        steps: maximum steps per restart.
        restarts: restarts per victim.
        tv: weight for the total variation.
        rate: initial learning rate.
        median_every: steps between two 3 x 3 median filters; 0: no filter.
        spacing: voxel spacing along D, H and W, for the total variation of volumes; ``None``: voxels are cubes.
        largest: ignore every tensor from the first with more elements than this onward, except the last layer; 0: match
            all tensors, as in the paper.
        top: match only this many tensors, those with the largest norms; 0: all, as in the paper. The notebooks of Das,
            Amini and Wu match ten.
        halving: share of all steps between two cuts; each cut drops the worse half of the restarts
            (`medpfl.attacks.optimize.racing.Race`); 0: every restart runs to its end.
        patience: number of steps after which a restart moves on to its next rate early, if its objective fell by less
            than 1 %; after the last rate it ends (`medpfl.attacks.optimize.optimizer.SignedAdam`). 0: rates depend only
            on the step.
        scope: ``'global'``, one cosine for the whole updates, as in the paper, or ``'layer'``, the tensors' mean cosine
            distance (`medpfl.attacks.matching.objectives.Cosine`).
        schedule: learning rate schedule: ``'steps'``, as in the paper, or ``'linear'``, which excludes `patience`
            (`medpfl.attacks.optimize.optimizer.SignedAdam`).
    """

    steps: int = 2000
    restarts: int = 1
    tv: float = 1e-3
    rate: float = 0.03
    median_every: int = 0
    spacing: tuple[float, ...] | None = None
    largest: int = 0
    top: int = 0
    halving: float = 0.0
    patience: int = 0
    scope: Literal["global", "layer"] = "global"
    schedule: Literal["steps", "linear"] = "steps"

    def suited(self, model: nn.Module) -> tuple[Attack, ...]:
        """Return `UNTRAINED` and `TRAINED` if the model is deep and this attack has its default settings, else nothing.

        A model is deep with more than `_LAYERS` weights and more than `_DEEP` elements in them; see `Attack.suited`.
        """
        sizes = [p.numel() for p in model.parameters() if p.ndim > 1]
        return (UNTRAINED, TRAINED) if sum(sizes) > _DEEP and len(sizes) > _LAYERS and self == GradInv() else ()

    def matching(self) -> GradientMatching:
        """Return the search with these settings."""
        return GradientMatching(
            objective=Cosine(self.scope, self.top),
            prior=TotalVariation(self.tv, self.spacing),
            optimizer=SignedAdam(self.rate, patience=self.patience, schedule=self.schedule),
            start=Normal(0.5, 0.25),
            labels=LastLayer(),
            constraint=Box(self.median_every),
            basis=Pixels(),
            warmup=(),
            restarts=self.restarts,
            halving=self.halving,
            largest=self.largest,
            enough=0.0,
            steps=self.steps,
        )


UNTRAINED = GradInv(steps=500, tv=0.1, rate=0.1, largest=1_000_000)
"""Settings for deep networks before training. They leave the last stage of a ResNet-18 out of the distance."""

TRAINED = GradInv(steps=500, tv=0.44, rate=0.1, largest=1_000_000, scope="layer", schedule="linear")
"""Settings for deep trained networks. On untrained and on small networks, one cosine per layer is worse."""
