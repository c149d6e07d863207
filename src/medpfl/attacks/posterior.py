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
from medpfl.attacks.matching.starts import Normal
from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.core.errors import check_positive
from medpfl.core.roles import Attack
from medpfl.core.types import Observation, Reconstruction

__all__ = ["Posterior"]

_EASY, _GRAY = SquaredDistance(), Normal(0.5, 0.1)


@dataclass(frozen=True, repr=False)
class Posterior(Attack):
    """Maximum a posteriori estimate: the update's likelihood under its noise, and a prior for images with few edges.

    Source: Balunovic, Dimitrov, Staab and Vechev, "Bayesian Framework for Gradient Leakage", ICLR 2022
    (arXiv:2111.04706), section 3: against a known defense the best attack maximizes p(update | image) p(image). Here
    p(update | image) is normal with the precision of the `medpfl.core.types.Channel`, or, in the last stage, Laplace
    where the channel says so. p(image) is the total variation of all channels together. No weight between the two needs
    tuning: under the density exp(-variation / edges), the mean variation is `edges` times the number of pixels and
    channels.
    Needs: the update, the plan, the model. Without a granted channel, the noise is estimated from sums in the last
    layer that would be zero without it (`medpfl.attacks.matching.likelihood.noise_from_columns`).
    Labels: inferred unless granted.
    Ends: at the noise level, not at 0. The objective is then about 1/2 (0.8 for Laplace noise) plus the prior's term.
    The prior keeps the search from fitting the noise.
    Start: nearly gray images (mean 0.5, standard deviation 0.1). A search from noise does not read batches through
    networks with ReLUs (`benchmarks/results/contested.md`).
    Deviates: begins with stages like iDLG's, the second one longer, for smooth images and the last layer; then anneals
    the variance.

    Attributes:
        steps: maximum steps per restart, warm-up included.
        restarts: restarts per victim.
        edges: mean image gradient per pixel and channel, in units of [0, 1], for images of 32 pixels.
        floor: smallest noise deviation assumed in the last stage, relative to each tensor's root mean square.
        coarse: floors of the earlier stages, each a tenth of the steps.

    Raises:
        InputError: A setting is not above 0.
    """

    steps: int = 600
    restarts: int = 1
    edges: float = 0.04
    floor: float = 3e-3
    coarse: tuple[float, ...] = (0.1, 0.03, 0.01)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coarse", tuple(self.coarse))
        check_positive(edges=self.edges)
        self._matching(1, laplace=False)

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Reconstruct the images of each victim."""
        return self.matching(seen)(with_noise(seen), generator)

    def matching(self, seen: Observation) -> GradientMatching:
        """Return the search for an observation, to be called on the observation `with_noise`."""
        coordinates = sum(t[0].numel() for t in seen.views[0].update.tensors.values())
        laplace = all(view.channel is not None and view.channel.laplace for view in seen.views)
        return self._matching(coordinates, laplace)

    def _matching(self, coordinates: int, laplace: bool) -> GradientMatching:
        """Return the search for updates with this many elements. Building it checks the settings."""
        prior = ColorVariation(1 / (self.edges * coordinates))
        return GradientMatching(
            objective=Likelihood(self.floor, laplace),
            prior=prior,
            start=_GRAY,
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
