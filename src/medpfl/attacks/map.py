"""The most probable images, given the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpfl.attacks.labels import LastLayer
from medpfl.attacks.lbfgs import LBFGS
from medpfl.attacks.likelihood import Likelihood, with_noise
from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.objectives import SquaredDistance
from medpfl.attacks.priors import ColorVariation, Smoothness
from medpfl.attacks.schedule import Stage
from medpfl.core.roles import Attack
from medpfl.core.types import Observation, Reconstruction

__all__ = ["MAP"]

_EASY = SquaredDistance()


@dataclass(frozen=True, repr=False)
class MAP(Attack):
    """Maximum a posteriori: the likelihood of the update in units of its noise, and total variation as the prior.

    Source: Balunovic, Dimitrov, Staab and Vechev, "Bayesian Framework for Gradient Leakage", ICLR 2022
    (arXiv:2111.04706): with known noise the best attack maximizes p(update | image) p(image).
    """

    steps: int = 600
    restarts: int = 1
    edges: float = 0.04
    floor: float = 1e-3
    coarse: tuple[float, ...] = (0.1, 0.02)

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """The attack."""
        told = with_noise(seen)
        coordinates = sum(t[0].numel() for t in seen.views[0].update.tensors.values())
        prior = ColorVariation(1 / (self.edges * coordinates))
        attack = GradientMatching(
            objective=Likelihood(self.floor),
            prior=prior,
            labels=LastLayer(),
            optimizer=LBFGS(patience=50),
            warmup=(
                Stage(Smoothness(1.0), 30, head=True, objective=_EASY),
                Stage(Smoothness(0.1), 40, objective=_EASY),
                *(Stage(prior, 60, objective=Likelihood(floor)) for floor in self.coarse),
            ),
            enough=0.0,
            restarts=self.restarts,
            steps=self.steps,
        )
        return attack(told, generator)
