"""The most probable images, given the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.matching.labels import LastLayer
from medpfl.attacks.matching.likelihood import Likelihood, with_noise
from medpfl.attacks.matching.objectives import SquaredDistance
from medpfl.attacks.matching.priors import ColorVariation, Smoothness
from medpfl.attacks.matching.stages import Stage
from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.core.errors import check_positive
from medpfl.core.roles import Attack
from medpfl.core.types import Observation, Reconstruction

__all__ = ["Posterior"]

_EASY = SquaredDistance()


@dataclass(frozen=True, repr=False)
class Posterior(Attack):
    """Maximum a posteriori: how likely the update is under its noise, and images with few edges.

    Source: Balunovic, Dimitrov, Staab and Vechev, "Bayesian Framework for Gradient Leakage", ICLR 2022
    (arXiv:2111.04706), section 3: against a known defense the best attack maximizes p(update | image) p(image).
    Here p(update | image) has the `medpfl.core.types.Channel`'s precision and is normal, or in the last stage Laplace's
    where the channel says so, and p(image) is the total variation of all channels together, so that neither has a
    weight to tune: under a density exp(-variation / edges) the variation's mean is `edges` times the number of pixels
    and channels, whence the unit.
    Needs: the update, the plan, the model. Where no channel is granted, the noise is estimated from what must sum
    to zero in the last layer (`medpfl.attacks.matching.likelihood.noise_from_columns`).
    Labels: inferred, unless they are granted.
    Ends at the noise, which the prior keeps it from fitting: with an objective of 1/2 (0.8 of Laplace's) and the
    prior's part, not 0.
    Deviates: starts with stages like iDLG's (the second is longer), from smooth images and the last layer, then anneals
    the variance.

    Attributes:
        steps, restarts: of the optimizer, warm-up included.
        edges: mean gradient of a pixel over its channels, in units of [0, 1]; of images of 32 pixels.
        floor: least deviation that is assumed, of a tensor's root mean square; of the last stage.
        coarse: floors of the stages before, of a tenth of the steps each.

    Raises:
        InputError: a number that is not above 0.
    """

    steps: int = 600
    restarts: int = 1
    edges: float = 0.04
    floor: float = 1e-2
    coarse: tuple[float, ...] = (0.3, 0.1, 0.03)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coarse", tuple(self.coarse))
        check_positive(edges=self.edges)
        self._matching(1, laplace=False)

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """The attack."""
        coordinates = sum(t[0].numel() for t in seen.views[0].update.tensors.values())
        laplace = all(view.channel is not None and view.channel.laplace for view in seen.views)
        return self._matching(coordinates, laplace)(with_noise(seen), generator)

    def _matching(self, coordinates: int, laplace: bool) -> GradientMatching:
        """The search that it is for updates of so many numbers, which checks its settings."""
        prior = ColorVariation(1 / (self.edges * coordinates))
        return GradientMatching(
            objective=Likelihood(self.floor, laplace),
            prior=prior,
            labels=LastLayer(),
            optimizer=LBFGS(patience=50),
            warmup=(
                Stage(Smoothness(1.0), 30, head=True, objective=_EASY),
                Stage(Smoothness(0.1), 40, objective=_EASY),
                *(Stage(prior, self.steps // 10, objective=Likelihood(floor)) for floor in self.coarse),
            ),
            enough=0.0,
            restarts=self.restarts,
            steps=self.steps,
        )
