"""What an audit of a segmenting model found of the masks, in lines."""

from __future__ import annotations

from medpfl.judging.types import MaskScores
from medpfl.reporting.phrases import Cells
from medpfl.reporting.words import between, known, label, number

__all__ = ["mask_lines"]


def mask_lines(summary: Cells) -> list[str]:
    """A line for each cell, under a heading; nothing where nothing is segmented."""
    lines = [
        f"  {label(cell.attack)}, {label(cell.defense)}: {_told(told)}" for cell in summary if (told := cell.masks)
    ]
    return ["Masks (overlap with the truth, mean over images):", *lines] if lines else []


def _told(scores: MaskScores) -> str:
    if scores.granted:
        return "granted to the adversary, so not judged"
    dice = scores.dice
    if not known(dice.value):
        return "the attack does not say"
    interval = f" ({between(dice.low, dice.high)})" if known(dice.low) else ""
    guesses = {"mean mask": scores.dice_majority, "random update": scores.dice_random_update}
    without = ", ".join(f"{name} {number(mean)}" for name, mean in guesses.items() if known(mean))
    return f"Dice {number(dice.value)}{interval}, IoU {number(scores.iou)}; Dice without the update: {without}"
