"""Uniform noise as a baseline: the scores that guesses without any information reach."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["noise_scores"]

_COUNT, _PERCENTILE = 100, 0.99
_ELEMENTS = 2**18
"""Number of elements that are scored together; more do not fit into a processor's cache."""


def noise_scores(score: Callable[[Tensor, Tensor], Tensor], truth: Tensor) -> Tensor:
    """Return the 99th percentile (N,) of the scores of 100 noise images, for each target image.

    A guess above it is more similar to its target image than 99 of 100 images of noise. The noise is uniform in [0, 1],
    and the same for all target images of one shape.

    Args:
        score: a metric of (guess, truth), which takes many guesses at one image; its higher values mean more similar
            images.
        truth: images (N, C, H, W) or volumes (N, C, D, H, W) in [0, 1].
    """
    generator, together = torch.Generator().manual_seed(0), max(1, _ELEMENTS // truth[0].numel())
    scores = []
    for first in range(0, _COUNT, together):
        noise = torch.rand(min(together, _COUNT - first), *truth.shape[1:], generator=generator)
        scores.append(torch.stack([score(noise, image[None]) for image in truth]))
    return torch.cat(scores, 1).quantile(_PERCENTILE, dim=1)
