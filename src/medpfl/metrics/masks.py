"""Mask metrics: overlap between guess and true mask, one value per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["class_counts", "majority", "mask_dice", "mask_iou"]


def mask_dice(guess: Tensor, truth: Tensor) -> Tensor:
    """Return Dice coefficients (N,) (Dice 1945), averaged over the classes above 0 in either mask.

    Per class it is ``2 |A & B| / (|A| + |B|)``.

    Args:
        guess, truth: classes (N, H, W) or (N, D, H, W); 0 is the background. Two empty masks score 1.
    """
    return _mean_overlap(guess, truth, lambda both, total: 2 * both / total)


def mask_iou(guess: Tensor, truth: Tensor) -> Tensor:
    """Return intersections over unions (N,) (Jaccard 1901), ``|A & B| / |A | B|``; otherwise as `mask_dice`."""
    return _mean_overlap(guess, truth, lambda both, total: both / (total - both))


def _mean_overlap(guess: Tensor, truth: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    sums, counts = torch.zeros(len(truth), dtype=torch.float64), torch.zeros(len(truth), dtype=torch.float64)
    for label in range(1, int(max(guess.max(), truth.max())) + 1):
        own, other = (guess == label).flatten(1), (truth == label).flatten(1)
        both, total = (own & other).sum(1).double(), (own.sum(1) + other.sum(1)).double()
        there = total > 0
        sums += torch.where(there, score(both, total.clamp(min=1)), 0.0)
        counts += there
    return torch.where(counts > 0, sums / counts.clamp(min=1), 1.0)


def class_counts(masks: Tensor) -> Tensor:
    """Return how many of all masks (M, H, W) have each class at each pixel: (classes, H, W)."""
    return torch.stack([(masks == label).sum(0) for label in range(int(masks.max()) + 1)])


def majority(counts: Tensor, without: Tensor) -> Tensor:
    """Return each pixel's most common class (N, H, W) over all masks but one.

    Args:
        counts: (classes, H, W) of all masks, from `class_counts`.
        without: the N masks (N, H, W), each of which is left out once.
    """
    own = torch.stack([(without == label).long() for label in range(len(counts))], 1)
    return (counts - own).argmax(1)
