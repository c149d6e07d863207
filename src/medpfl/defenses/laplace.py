"""Laplace noise on the update: the paper's gradient perturbation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.defenses.noise import AdditiveNoise

__all__ = ["LaplaceNoise"]


@dataclass(frozen=True, repr=False)
class LaplaceNoise(AdditiveNoise):
    """Laplace noise of scale (diversity) `scale` on every coordinate (Das, Amini and Wu, arXiv:2409.18907).

    The paper's notebooks use 1/100, 1/200, 1/300 and 1/400. The standard deviation is ``scale * sqrt(2)``.
    Promises no differential privacy by itself: without clipping its sensitivity is unbounded.
    """

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Laplace of diversity 1, by the inverse of its distribution function."""
        # float64: the logarithm's argument must not round to 0 or 1 before the tails are reached.
        u = torch.rand(like.shape, generator=generator, dtype=torch.float64) - 0.5
        return (-u.sign() * torch.log1p(-2 * u.abs().clamp(max=0.5 - 2**-54))).to(like.dtype)

    def variance(self) -> float:
        """2."""
        return 2.0
