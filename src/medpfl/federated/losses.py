"""What a client minimizes, of classes and of masks; differentiable with respect to labels too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LOSSES", "cross_entropy", "dice"]

_SMALL = 1e-5


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over images, and over the pixels of masks.

    Args:
        logits: (N, K), or (N, K, H, W) of masks, or (N, K, D, H, W).
        labels: classes, of the same shape without K; or probabilities, of the same shape.
    """
    log_probabilities = torch.log_softmax(logits, 1)
    if labels.ndim < logits.ndim:
        return -log_probabilities.gather(1, labels[:, None]).mean()
    return -(labels * log_probabilities).sum(1).mean()


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the soft Dice coefficient, mean over images and classes, the background included.

    ``1 - (2 sum(p y) + s) / (sum(p) + sum(y) + s)`` with sums over pixels, p by softmax and s = 1e-5: the linear form
    of Milletari et al. 2016 (arXiv:1606.04797, section 3, with squares), as in MONAI's ``DiceLoss(softmax=True)``.

    Args:
        logits, labels: as in `cross_entropy`, of masks.
    """
    probabilities, pixels = logits.softmax(1), tuple(range(2, logits.ndim))
    if labels.ndim < logits.ndim:
        classes = torch.arange(logits.shape[1], device=labels.device).view(1, -1, *[1] * len(pixels))
        labels = (labels[:, None] == classes).to(logits)
    both = (probabilities * labels).sum(pixels)
    total = probabilities.sum(pixels) + labels.sum(pixels)
    return (1 - (2 * both + _SMALL) / (total + _SMALL)).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "dice": dice}
"""By the plan's word."""
