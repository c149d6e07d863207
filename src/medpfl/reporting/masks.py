"""What an audit of a segmenting model found of the masks, in lines."""

from __future__ import annotations

from typing import Any

from medpfl.reporting.phrases import Cells
from medpfl.reporting.words import between, known, label, number

__all__ = ["mask_lines"]


def mask_lines(summary: Cells) -> list[str]:
    """A line for each cell, under a heading; nothing where nothing is segmented."""
    lines = [
        f"  {label(cell['attack'])}, {label(cell['defense'])}: {_told(told)}"
        for cell in summary
        if (told := cell.get("masks"))
    ]
    return ["Masks (overlap with the truth, mean over images):", *lines] if lines else []


def _told(told: dict[str, Any]) -> str:
    if told["granted"]:
        return "granted to the adversary, so not judged"
    if not known(told["dice"]):
        return "the attack does not say"
    spread = between(told["dice_low"], told["dice_high"])
    interval = f" ({spread})" if known(told["dice_low"]) else ""
    names = {"dice_majority": "mean mask", "dice_random_update": "random update"}
    without = ", ".join(f"{name} {number(told[key])}" for key, name in names.items() if known(told[key]))
    return f"Dice {number(told['dice'])}{interval}, IoU {number(told['iou'])}; Dice without the update: {without}"
