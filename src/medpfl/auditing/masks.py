"""Segmentation in an audit: the scores of the masks that a guess gives, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from medpfl.core.types import Finding
from medpfl.data.reading.masks import class_of
from medpfl.metrics.masks import majority, mask_dice, mask_iou

__all__ = ["with_masks"]


def with_masks(rows: Sequence[Finding], guess: Tensor | None, masks: Tensor, own: Tensor) -> list[Finding]:
    """The rows of one update with the scores of its masks.

    Args:
        rows: N findings, in the order of `own`.
        guess: (N, H, W) masks, or ``None`` if the attack has none.
        masks: (M, H, W) of all images.
        own: (N,) indices of the update's images.

    Returns:
        With ``mask_dice``, ``mask_iou``, and ``majority_dice``: of the commonest class of each pixel over the other
        images' masks, a guess without the update.
    """
    truth = masks[own]
    scores = {"majority_dice": mask_dice(majority(masks, own), truth).tolist()}
    if guess is not None:
        scores |= {"mask_dice": mask_dice(guess, truth).tolist(), "mask_iou": mask_iou(guess, truth).tolist()}
    told = [None] * len(own) if guess is None else class_of(guess).tolist()
    return [
        replace(row, label_guess=told[i], scores=row.scores | {name: values[i] for name, values in scores.items()})
        for i, row in enumerate(rows)
    ]
