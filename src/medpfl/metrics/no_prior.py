"""What an adversary without a prior makes of an image behind Gaussian noise: a reference, and no bound."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["no_prior_guess"]


def no_prior_guess(truth: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Guesses (N, C, H, W) of an adversary that knows the noise and nothing of images, each from one noisy image.

    Riess et al. 2024 (arXiv:2402.12861): the worst model that a server can send makes an image x itself the gradient.
    Clipped to a norm C below its own and noised, it arrives as ``C x / |x| + N(0, (noise C)^2 I)``. Without a prior,
    none but the mean of a normal law is to be estimated, and among unbiased guesses none has a smaller error than what
    arrived, scaled back by ``|x| / C``: ``N(x, (noise |x|)^2 I)``. Hence d MSE / (noise |x|)^2 is chi-squared with d
    degrees of freedom, d the number of pixels. Of n independent arrivals, `noise` is divided by the root of n.

    An adversary with a prior (that pixels are smooth, or lie in [0, 1]) can do better. The norm of x is granted to it.

    Args:
        truth: (N, C, H, W) in [0, 1].
        noise: the noise multiplier.
        generator: on the CPU.
    """
    size = truth.flatten(1).norm(dim=1).view(-1, *[1] * (truth.ndim - 1))
    drawn = torch.randn(truth.shape, generator=generator, dtype=truth.dtype).to(truth.device)
    return truth + noise * size * drawn
