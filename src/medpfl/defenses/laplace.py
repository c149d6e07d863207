"""Laplace noise on the update: gradient perturbation as in the paper of Das, Amini and Wu."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medpfl.defenses.noise import AdditiveNoise

__all__ = ["PAPER_SCALES", "LaplaceNoise"]

PAPER_SCALES = (1 / 400, 1 / 300, 1 / 200, 1 / 100)
"""Scales in the notebooks of Das, Amini and Wu (arXiv:2409.18907), weakest first: ``LaplaceNoise(scale=1/400)`` etc."""


@dataclass(frozen=True, repr=False)
class LaplaceNoise(AdditiveNoise):
    """Laplace noise of scale (diversity) `scale` on every coordinate (Das, Amini and Wu, arXiv:2409.18907).

    The paper's notebooks use `PAPER_SCALES`. The standard deviation is ``scale * sqrt(2)``.

    Promises no differential privacy by itself: without clipping, the sensitivity is unbounded. Breaks: the paper
    itself finds (third finding) that it does not always protect; some generative priors are designed to see through
    noise (GradInvDiff, MICCAI 2025; Mjolnir, AAAI 2025).
    """

    laplace: ClassVar[bool] = True

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Draw Laplace noise with diversity 1, by inverse transform sampling."""
        # float64: the logarithm's argument must not round to 0 or 1 before the tails are reached.
        u = torch.rand(like.shape, generator=generator, dtype=torch.float64) - 0.5
        return (-u.sign() * torch.log1p(-2 * u.abs().clamp(max=0.5 - 2**-54))).to(like.dtype)

    def variance(self) -> float:
        """Return 2, the variance of Laplace noise with diversity 1."""
        return 2.0
