"""What one cell (an attack and a defense) says in words: how many images, how sure, or why nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpfl.reporting.words import attacker, known, label, percent, percents

__all__ = ["Cell", "Cells", "bound", "count", "did", "example", "failed", "of", "reason", "strength"]

Cell = Mapping[str, Any]
Cells = Sequence[Cell]

# In the order in which they explain: the first that is raised is the reason given.
REASONS = {
    "naive-attack": "these attacks were not told of the defense that they failed against",
    "control-failed": "these attacks do not work here even without a defense",
    "control-weak": "without the defense these attacks only recognize the images of one client and read none back, "
    "and a sum over clients is harder to read",
    "too-few": "so few updates were attacked that as much success as without the defense would not have shown",
    "record-mismatch": "the recorded update is not what the images give under the stated plan and defense",
    "prior-only": "a guess made without the update does as well as these attacks",
    "nonfinite": "the attacks ended at numbers that are not finite",
    "not-converged": "the attacks were stopped before they had converged",
}


def strength(cell: Cell) -> tuple[float, ...]:
    """How much an attack got, for comparing cells."""
    return tuple(cell[k] if known(cell.get(k)) else -1.0 for k in ("asr", "identified", "ssim"))


def count(cell: Cell) -> int | None:
    """Images read back, or ``None`` if none was scored."""
    return round(cell["asr"] * cell["images"]) if known(cell.get("asr")) and cell.get("images") else None


def of(some: int, cell: Cell, noun: bool = True) -> str:
    """``19 of 24 images``."""
    images = "" if not noun else " image" if cell["images"] == 1 else " images"
    return f"{some or 'none'} of {cell['images']}{images}"


def bound(cell: Cell) -> str:
    """``at most 14 % with 95 % confidence``, if that is known."""
    return f"at most {percent(cell['asr_high'])} with 95 % confidence" if known(cell.get("asr_high")) else ""


def example(cell: Cell) -> str:
    """``TopK(keep=0.1) (5 of 24 images, 21 %, by iDLG)``."""
    name, some = label(cell["defense"]), count(cell)
    if some is None:
        return name
    extent = [percent(cell["asr"]), f"by {attacker(cell)}"] if some else [bound(cell)]
    return f"{name} ({', '.join(filter(None, [of(some, cell), *extent]))})"


def did(cell: Cell) -> str:
    """What a server did in a cell that leaks. A leak may show in the identification alone."""
    some = count(cell)
    if some is None:
        return "read back images"
    if some:
        return f"read back {of(some, cell)} ({_rate(cell, 'asr')})"
    if not known(cell.get("identified")):
        return f"learned something of the images, though it read back none of {cell['images']},"
    chance = f"; by chance {percent(cell['chance'])}" if known(cell.get("chance")) else ""
    told = of(round(cell["identified"] * cell["images"]), cell)
    return f"recognized {told} among others ({_rate(cell, 'identified')}{chance}), though it read back none,"


def failed(cell: Cell, noun: bool = True) -> str:
    """What a failed attack shows, up to the comma before what it does not show."""
    some, only = count(cell), "which shows only that these attacks failed"
    if some is None:
        return f"no leak was found, {only}"
    if some:
        be = "was" if some == 1 else "were"
        return f"no more than {of(some, cell, noun)} {be} read back ({_rate(cell, 'asr')}), {only}"
    extent = f" ({bound(cell)})" if bound(cell) else ""
    return f"{of(0, cell, noun)} was read back, {only}{extent}"


def reason(cells: Cells) -> str:
    """Why nothing can be said; attacks that know the defense have the word, if there are any."""
    cells = [cell for cell in cells if cell.get("knows_defense") is not False] or cells
    flags = {flag for cell in cells for flag in cell.get("flags") or ()}
    if not any(cell.get("images") for cell in cells):
        empty = "the update of every image is exactly zero" if "zero-gradient" in flags else ""
        return empty or "no image was scored"
    found = (why for flag, why in REASONS.items() if flag in flags)
    return next(found, "what was measured is too little to tell a leak from a failed attack")


def _rate(cell: Cell, key: str) -> str:
    low, high = cell.get(f"{key}_low"), cell.get(f"{key}_high")
    interval = f", 95 % interval {percents(low, high)}" if known(low) and known(high) else ""
    return percent(cell[key]) + interval
