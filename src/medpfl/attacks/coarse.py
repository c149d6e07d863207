"""Inverting the gradients of deep networks, coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpfl.attacks.bases import Pixels
from medpfl.attacks.constraints import Box
from medpfl.attacks.labels import LastLayer
from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.objectives import Cosine
from medpfl.attacks.optimizers import SignedAdam
from medpfl.attacks.priors import TotalVariation
from medpfl.attacks.schedule import Stage
from medpfl.attacks.starts import Normal
from medpfl.core.roles import Attack
from medpfl.core.types import Observation, Reconstruction

__all__ = ["CoarseToFine"]


@dataclass(frozen=True, repr=False)
class CoarseToFine(Attack):
    """GradInv for deep networks: without the largest tensors, first on images of a lower resolution.

    Source: cosine distance, total variation, signed Adam and box are those of Geiping et al. 2020
    (arXiv:2003.14053); `GradInv` is that paper's attack. What is added is ours: the tensors of the update of more than
    a million numbers are left out of the distance (on a ResNet-18 at 64 px, those of the last stage: they take about
    half of the time, and at an equal number of steps the images are no worse without them), and the pixels move in
    blocks of 4 x 4, then of 2 x 2, then alone.
    Needs: the update, the plan, the model.

    Attributes:
        steps, restarts: of the optimizer; two thirds of the steps are on blocks.
        tv: weight of the total variation.
        rate: first learning rate of each stage, in units of [0, 1].
        largest: numbers of the largest tensor that counts; 0: all count.
    """

    steps: int = 600
    restarts: int = 1
    tv: float = 0.1
    rate: float = 0.1
    largest: int = 1_000_000

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """The attack."""
        prior = TotalVariation(self.tv)
        attack = GradientMatching(
            objective=Cosine(),
            prior=prior,
            optimizer=SignedAdam(self.rate),
            start=Normal(0.5, 0.25),
            labels=LastLayer(),
            constraint=Box(),
            basis=Pixels(),
            warmup=(Stage(prior, block=4, share=1 / 3), Stage(prior, block=2, share=1 / 3)),
            restarts=self.restarts,
            largest=self.largest,
            enough=0.0,
            steps=self.steps,
        )
        return attack(seen, generator)
