"""Laplace noise on the update: the paper's gradient perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medpfl.defenses.noise import AdditiveNoise

__all__ = ["PAPER_SCALES", "LaplaceNoise"]

PAPER_SCALES = (1 / 400, 1 / 300, 1 / 200, 1 / 100)
"""Of the notebooks of Das, Amini and Wu (arXiv:2409.18907), weakest first: ``LaplaceNoise(scale=1/400)`` and so on."""


@dataclass(frozen=True, repr=False)
class LaplaceNoise(AdditiveNoise):
    """Laplace noise of scale (diversity) `scale` on every coordinate (Das, Amini and Wu, arXiv:2409.18907).

    The paper's notebooks use `PAPER_SCALES`. The standard deviation is ``scale * sqrt(2)``.

    Promises no differential privacy by itself: without clipping its sensitivity is unbounded. Breaks: the
    paper's own third finding is that it does not always protect; generative priors are built to see through
    noise (GradInvDiff, MICCAI 2025; Mjolnir, AAAI 2025).
    """

    laplace: ClassVar[bool] = True

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Laplace of diversity 1, by the inverse of its distribution function."""
        # float64: the logarithm's argument must not round to 0 or 1 before the tails are reached.
        u = torch.rand(like.shape, generator=generator, dtype=torch.float64) - 0.5
        return (-u.sign() * torch.log1p(-2 * u.abs().clamp(max=0.5 - 2**-54))).to(like.dtype)

    def variance(self) -> float:
        """2."""
        return 2.0
