"""Uniform noise as a baseline: the scores that guesses without any information reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from medpfl.metrics.pixel import similarity_of, ssim

__all__ = ["noise_images", "noise_scores", "percentile_of"]

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
    scores = []
    for noise in noise_images(truth.shape[1:]):
        of_noise = similarity_of(noise) if score is ssim else partial(score, noise)  # SSIM takes longest by far
        scores.append(torch.stack([of_noise(image[None]) for image in truth]))
    return percentile_of(torch.cat(scores, 1), 1)


def noise_images(shape: Sequence[int]) -> Iterator[Tensor]:
    """Yield the 100 noise images in stacks, as many together as a cache holds.

    Args:
        shape: an image's (C, H, W), or a volume's (C, D, H, W).
    """
    generator, together = torch.Generator().manual_seed(0), max(1, _ELEMENTS // prod(shape))
    for first in range(0, _COUNT, together):
        yield torch.rand(min(together, _COUNT - first), *shape, generator=generator)


def percentile_of(scores: Tensor, dim: int) -> Tensor:
    """Return the 99th percentile of the noise images' scores along an axis."""
    return scores.quantile(_PERCENTILE, dim=dim)
