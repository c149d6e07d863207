"""A cell's mask scores: the overlap between guessed and true segmentation masks."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from medpfl.core.types import Finding
from medpfl.judging.evidence import clusters_of
from medpfl.judging.types import MaskScores, Rate
from medpfl.metrics.rates import mean_interval

__all__ = ["mask_scores"]


def mask_scores(rows: Sequence[Finding], random: Sequence[Finding]) -> MaskScores | None:
    """Return the overlap between guessed and true masks in a cell; ``None`` if the model does not segment.

    Args:
        rows: the cell's scored findings.
        random: scored findings for the same attack on random updates.
    """
    rows = [row for row in rows if "majority_dice" in row.scores]
    if not rows:
        return None
    told = [row for row in rows if row.scores.get("mask_dice") is not None]
    low, high = mean_interval(_of(told, "mask_dice"), clusters=clusters_of(told))
    dice = Rate(
        _mean(_of(told, "mask_dice")),
        None if low is None else max(low, 0.0),
        None if high is None else min(high, 1.0),
    )
    return MaskScores(
        dice=dice,
        iou=_mean(_of(told, "mask_iou")),
        dice_majority=_mean(_of(rows, "majority_dice")),
        dice_random_update=_mean(_of(random, "mask_dice")),
        granted=all("labels" in row.grants for row in rows),
    )


def _of(rows: Sequence[Finding], name: str) -> list[float]:
    return [score for row in rows if (score := row.scores.get(name)) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return fsum(values) / len(values) if values else None
