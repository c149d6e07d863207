"""Training losses for classes and masks, differentiable with respect to labels too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from medpfl.core.plan import Plan

__all__ = ["LOSSES", "cross_entropy", "dice", "loss_of"]

_SMALL = 1e-5


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy over images, and over pixels for masks.

    Args:
        logits: (N, K); for masks (N, K, H, W) or (N, K, D, H, W).
        labels: classes with the same shape but without K, or probabilities with the same shape.
        smoothing: share of each label that is spread evenly over the K classes.
    """
    log_probabilities = torch.log_softmax(logits, 1)
    if labels.ndim < logits.ndim:
        loss = -log_probabilities.gather(1, labels[:, None]).mean()
    else:
        loss = -(labels * log_probabilities).sum(1).mean()
    return (1 - smoothing) * loss - smoothing * log_probabilities.mean() if smoothing else loss


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Return one minus the soft Dice coefficient, averaged over images and classes, including the background.

    ``1 - (2 sum(p y) + s) / (sum(p) + sum(y) + s)``, with sums over pixels, p from softmax, and s = 1e-5. This is the
    linear form of Milletari et al. 2016 (arXiv:1606.04797, section 3, which uses squares), as in MONAI's
    ``DiceLoss(softmax=True)``.

    Args:
        logits, labels: as in `cross_entropy`, for masks.
    """
    probabilities, pixels = logits.softmax(1), tuple(range(2, logits.ndim))
    if labels.ndim < logits.ndim:
        classes = torch.arange(logits.shape[1], device=labels.device).view(1, -1, *[1] * len(pixels))
        labels = (labels[:, None] == classes).to(logits)
    both = (probabilities * labels).sum(pixels)
    total = probabilities.sum(pixels) + labels.sum(pixels)
    return (1 - (2 * both + _SMALL) / (total + _SMALL)).mean()


def loss_of(plan: Plan) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a plan's training loss."""
    if plan.label_smoothing:
        return partial(cross_entropy, smoothing=plan.label_smoothing)
    return LOSSES[plan.loss]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "dice": dice}
"""Losses by their name in the plan."""
