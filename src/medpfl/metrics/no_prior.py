"""Reconstruction from Gaussian noise without a prior: a reference, not a bound."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["no_prior_guess"]


def no_prior_guess(truth: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Draw guesses (N, C, H, W) of an attacker who knows the noise but has no prior, each from one noisy image.

    Riess et al. 2024 (arXiv:2402.12861): the worst model that a server can send makes the gradient the image x itself.
    Clipped to a norm C below its own, and noised, it arrives as ``C x / |x| + N(0, (noise C)^2 I)``. Without a prior,
    the attacker can only estimate the mean of a normal distribution. Among unbiased guesses, none has a smaller error
    than the arrived update scaled back by ``|x| / C``, which is ``N(x, (noise |x|)^2 I)``. So d MSE / (noise |x|)^2 is
    chi-squared with d degrees of freedom, where d is the number of pixels. With n independent updates, `noise` is
    divided by the root of n.

    An attacker with a prior (pixels are smooth, or lie in [0, 1]) can do better. Here the attacker is granted the norm
    of x.

    Args:
        truth: images (N, C, H, W) in [0, 1].
        noise: the noise multiplier.
        generator: CPU generator.
    """
    size = truth.flatten(1).norm(dim=1).view(-1, *[1] * (truth.ndim - 1))
    drawn = torch.randn(truth.shape, generator=generator, dtype=truth.dtype).to(truth.device)
    return truth + noise * size * drawn
