"""Gaussian noise on the update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.defenses.noise import AdditiveNoise

__all__ = ["GaussianNoise"]


@dataclass(frozen=True, repr=False)
class GaussianNoise(AdditiveNoise):
    """Gaussian noise with standard deviation `scale` on every coordinate.

    Zhu et al. 2019 (arXiv:1906.08935, section 5.1).

    Promises no differential privacy by itself: without clipping, the sensitivity is unbounded; see `DPSGD` and
    `ClientDP`. Breaks: some generative priors are designed to see through noise (GradInvDiff, MICCAI 2025; Mjolnir,
    AAAI 2025).
    """

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Draw standard normal noise."""
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    def variance(self) -> float:
        """Return 1, the variance of standard normal noise."""
        return 1.0
