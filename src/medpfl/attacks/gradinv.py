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
"""Entries of the layers' weights, biases aside, above which a network may count as deep."""

_LAYERS = 10
"""Layers with weights above which it does: a wide network that is not deep is read best as small ones are."""


@dataclass(frozen=True, repr=False)
class GradInv(Recipe):
    """Cosine distance and total variation, by Adam on the sign of the gradient, in a box, filtered.

    Source: Geiping, Bauermeister, Droege and Moeller, "Inverting Gradients", NeurIPS 2020
    (arXiv:2003.14053), equation 4; settings of Das, Amini and Wu (arXiv:2409.18907): total variation 1e-6
    on untrained and 1e-1 on trained networks, rate 0.1 on normalized pixels, 8 restarts, 24,000 steps.
    Needs: the update, the plan, the model. Both papers give the labels to the adversary; here they are
    inferred unless they are granted.
    Deviates: pixels are not normalized, so the rate is in units of [0, 1]; where the last bias shows y - p,
    it stands for the labels (`medpfl.attacks.matching.label_targets`); by default one restart, 2,000 steps, no median
    filter (it hurts at 32 pixels), and settings for small networks; those for deep ones are `UNTRAINED` and `TRAINED`,
    of which `largest`, `scope` and `schedule` are not the papers', nor are `halving` and `patience`.

    Attributes:
        steps, restarts: of the optimizer.
        tv: weight of the total variation.
        rate: first learning rate.
        median_every: steps between two 3 x 3 median filters; 0: none.
        spacing: of the voxels of volumes along D, H and W, for the total variation; ``None``: they are cubes.
        largest: the update is matched up to the first tensor of more numbers than that; 0: all of it, as in the paper.
        top: so many tensors of the update are matched, those of the largest norms; 0: all of them, as in the paper. The
            notebooks of Das, Amini and Wu match ten.
        halving: share of the steps between two cuts, at which the worse half of the starts leaves
            (`medpfl.attacks.optimize.racing.Race`); 0: every start runs to its end.
        patience: steps without a hundredth's fall of the objective after which the next rate comes early, and after the
            last one the end (`medpfl.attacks.optimize.optimizer.SignedAdam`); 0: rates follow the number of steps
            alone.
        scope: ``'global'``, one angle between whole updates, as in the paper, or ``'layer'``, the mean of what the
            tensors have of their own (`medpfl.attacks.matching.objectives.Cosine`).
        schedule: of the rate: ``'steps'``, as in the paper, or ``'linear'``, which takes no `patience`
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
        """For a deep network, with the settings for untrained and for trained ones."""
        sizes = [p.numel() for p in model.parameters() if p.ndim > 1]
        return (UNTRAINED, TRAINED) if sum(sizes) > _DEEP and len(sizes) > _LAYERS and self == GradInv() else ()

    def matching(self) -> GradientMatching:
        """The search that it is."""
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
"""For deep networks before training. The last stage of a ResNet-18 is left out of the distance."""

TRAINED = GradInv(steps=500, tv=0.44, rate=0.1, largest=1_000_000, scope="layer", schedule="linear")
"""For deep networks that have learned something: on untrained and on small ones an angle for each layer is worse."""
