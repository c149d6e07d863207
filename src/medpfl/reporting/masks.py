"""Lines on reconstructed masks, for audits of segmentation models."""

from __future__ import annotations

from medpfl.judging.types import MaskScores
from medpfl.reporting.phrases import Cells
from medpfl.reporting.words import between, known, label, number

__all__ = ["mask_lines"]


def mask_lines(summary: Cells) -> list[str]:
    """Return a heading and a line for each cell, or nothing if the model does not segment."""
    lines = [
        f"  {label(cell.attack)}, {label(cell.defense)}: {_told(told)}" for cell in summary if (told := cell.masks)
    ]
    return ["Masks (overlap with the true mask, mean over images):", *lines] if lines else []


def _told(scores: MaskScores) -> str:
    if scores.granted:
        return "not scored, because the attacker was given the masks"
    dice = scores.dice
    if not known(dice.value):
        return "this attack returns no mask"
    interval = f" ({between(dice.low, dice.high)})" if known(dice.low) else ""
    guesses = {"mean mask": scores.dice_majority, "random update": scores.dice_random_update}
    without = ", ".join(f"{name} {number(mean)}" for name, mean in guesses.items() if known(mean))
    return f"Dice {number(dice.value)}{interval}, IoU {number(scores.iou)}; Dice without the update: {without}"
