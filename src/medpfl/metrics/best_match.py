"""Best matches: the highest score of a guess with any image of a data set, whichever image it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from medpfl.metrics.noise import noise_images, percentile_of

__all__ = ["all_scores", "noise_match", "ranks"]

_ELEMENTS = 2**18
"""Number of elements that are scored together."""

_ROUNDING = 1e-9
"""Difference between scores of equal images."""

Score = Callable[[Tensor, Tensor], Tensor]
"""A metric of (guess, image), which takes one guess and many images; its higher values mean more similar images."""


def all_scores(score: Score, guesses: Tensor, images: Iterable[Tensor]) -> Tensor:
    """Return the scores (N, M) of guesses (N, C, H, W) with all images, both in [0, 1].

    Args:
        score: a metric.
        guesses: (N, C, H, W).
        images: consecutive parts (m, C, H, W) of the M images.
    """
    pieces = (piece for part in images for piece in part.split(max(1, _ELEMENTS // part[0].numel())))
    return torch.cat([torch.stack([score(guess[None], piece) for guess in guesses]) for piece in pieces], 1)


def ranks(scores: Tensor, own: Tensor) -> Tensor:
    """Return each guess's rank (N,) of its own image: 1 if no image has a higher score.

    Args:
        scores: (N, M) from `all_scores`.
        own: (N,) indices of the guesses' own images.
    """
    return 1 + (scores > scores[torch.arange(len(own)), own][:, None] + _ROUNDING).sum(1)


def noise_match(score: Score, images: Callable[[], Iterable[Tensor]], shape: Sequence[int]) -> float:
    """Return the 99th percentile of the best matches of 100 noise images with all images.

    Args:
        score: a metric.
        images: function that returns the images as in `all_scores`, from the first on in every call.
        shape: an image's (C, H, W), or a volume's (C, D, H, W).
    """
    best = [all_scores(score, noise, images()).amax(1) for noise in noise_images(shape)]
    return float(percentile_of(torch.cat(best), 0))
