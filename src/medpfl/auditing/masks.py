"""Segmentation in an audit: what a guess tells of the masks, by row and by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medpfl.auditing.checks import clusters_of
from medpfl.core.types import Finding
from medpfl.data.masks import class_of
from medpfl.metrics.masks import majority, mask_dice, mask_iou
from medpfl.metrics.rates import mean_interval

__all__ = ["mask_cell", "with_masks"]


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


def mask_cell(rows: Sequence[Finding], random: Sequence[Finding]) -> dict[str, Any] | None:
    """What the attack of a cell told of the masks; ``None`` where nothing is segmented.

    Args:
        rows: scored findings of the cell.
        random: those of the same attack on random updates.

    Returns:
        Means over images: ``dice`` with ``dice_low`` and ``dice_high``, ``iou``, ``dice_majority`` and
        ``dice_random_update``; and ``granted``: whether the adversary was told the masks, so that they say nothing.
    """
    rows = [row for row in rows if "majority_dice" in row.scores]
    if not rows:
        return None
    told = [row for row in rows if row.scores.get("mask_dice") is not None]
    low, high = mean_interval(_of(told, "mask_dice"), clusters=clusters_of(told))
    return {
        "dice": _mean(_of(told, "mask_dice")),
        "dice_low": None if low is None else max(low, 0.0),
        "dice_high": None if high is None else min(high, 1.0),
        "iou": _mean(_of(told, "mask_iou")),
        "dice_majority": _mean(_of(rows, "majority_dice")),
        "dice_random_update": _mean(_of(random, "mask_dice")),
        "granted": all("labels" in row.grants for row in rows),
    }


def _of(rows: Sequence[Finding], name: str) -> list[float]:
    return [score for row in rows if (score := row.scores.get(name)) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return float(torch.tensor(values, dtype=torch.float64).mean()) if values else None
