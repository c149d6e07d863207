"""What the attacks on one defense say in words: how many images, how sure, or why nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpfl.core.verdicts import LEAKS
from medpfl.reporting.words import attacker, counted, known, label, percent, percents

__all__ = ["Cell", "Cells", "bounded", "by", "counts", "example", "hits", "labels", "reason", "strength"]

Cell = Mapping[str, Any]
Cells = Sequence[Cell]

_BLUNT = "these attacks do not work here even without a defense"

# In the order in which they explain: the first that is raised is the reason given.
REASONS = {
    "record-mismatch": "the recorded update is not what the images give under the stated plan and defense",
    "misdisclosed": "what this defense discloses of itself is not what it does, so that no attack knew what it does",
    "undisclosed": "this defense does not say what an attacker who knows its code could undo "
    "(docs/extending.md: disclose)",
    "naive-attack": "these attacks were not told of the defense that they failed against",
    "control-failed": _BLUNT,
    "control-low": "without the defense these attacks are not shown to get more images than the tolerance either",
    "masked-vector": "one client's masked message alone says more than random numbers",
    "control-weak": "without the defense these attacks only recognize the images of one client and read none back, "
    "and a sum over clients is harder to read",
    "patients-leak": "few images are exposed, but some patients are, by one of their images",
    "worst-candidate": "an attack had readings among its candidates, and only did not choose them",
    "small-gallery": "at least 20 images are needed to test whether one can be recognized among them",
    "prior-only": "a guess made without the update does as well as these attacks",
    "nonfinite": "the attacks ended at numbers that are not finite",
    "not-converged": "the attacks were stopped before they had converged",
}


def strength(cell: Cell) -> tuple[float, ...]:
    """Return how much an attack got, for comparing cells."""
    return tuple(cell[k] if known(cell.get(k)) else -1.0 for k in ("asr", "identified", "ssim"))


def hits(told: Cell, key: str) -> int | None:
    """Return the number of images behind a rate of a cell or a union; ``None`` if it is not known."""
    return round(told[key] * told["images"]) if known(told.get(key)) and told.get("images") else None


def _of(some: int, told: Cell) -> str:
    return f"{some or 'none'} of {counted(told['images'], 'image')}"


def counts(union: Cell, short: bool = False) -> str:
    """Return what was read back and recognized, in numbers.

    Args:
        union: what the attacks on a defense show together.
        short: without intervals.
    """
    read, told = hits(union, "asr"), hits(union, "identified")
    if read is None:
        return "read back no image"
    one = " of this one update" if union["updates"] == 1 else ""
    first = f"read back {_of(read, union)}{one}{_rate(union, 'asr', short)}"
    if told is None:
        return first
    chance = (
        f"; without the update {percent(union['identified_floor'])}" if known(union.get("identified_floor")) else ""
    )
    link = "but" if told and not read else "and"
    return f"{first} {link} recognized {told or 'none'} among others{_rate(union, 'identified', short, chance)}"


def _rate(union: Cell, key: str, short: bool, more: str = "") -> str:
    low, high = union.get(f"{key}_low"), union.get(f"{key}_high")
    interval = f", 95 % interval {percents(low, high)}" if known(low) and known(high) and not short else ""
    return f" ({percent(union[key])}{interval}{more})"


def bounded(union: Cell) -> str:
    """Return what a failure shows: the tolerance that the upper ends keep, and the numbers."""
    least, read, told = percent(union["tolerance"]), hits(union, "asr") or 0, hits(union, "identified")
    return (
        f"with 95 % confidence, these attacks read back fewer than {least} of images and recognize fewer than {least} "
        f"beyond chance (read back {_of(read, union)}, recognized {told or 'none'})"
    )


def by(cells: Cells) -> str:
    """Return which attacks, and the strongest of them."""
    best = max(
        [cell for cell in cells if cell.get("verdict") == LEAKS] or cells,
        key=lambda cell: (strength(cell)[:2], bool(cell.get("knows_defense")), strength(cell)),
    )
    count = len({cell["attack"] for cell in cells})
    return attacker(best) if count == 1 else f"{count} attacks (the strongest: {attacker(best)})"


def example(cells: Cells) -> str:
    """Return ``TopK(keep=0.1) (read back 5 of 24 images, recognized 8)``."""
    union = cells[0]["union"]
    read, told = hits(union, "asr"), hits(union, "identified")
    if read is None:
        return label(cells[0]["defense"])
    extent = f"read back {_of(read, union)}" + ("" if told is None else f", recognized {told or 'none'}")
    return f"{label(cells[0]['defense'])} ({extent})"


def labels(cells: Cells) -> str:
    """Return a sentence on the labels that were inferred; empty where they were not."""
    telling = [cell for cell in cells if cell.get("label_verdict") == LEAKS]
    if not telling:
        return ""
    best = max(telling, key=lambda cell: cell["label_accuracy"])
    some = round(best["label_accuracy"] * best["images"])
    return f" The labels of {some} of {counted(best['images'], 'image')} were inferred."


def reason(cells: Cells) -> str:
    """Return why nothing can be concluded of a defense; attacks that know it have the word, if there are any."""
    union = cells[0].get("union") or {}
    asked = [cell for cell in cells if cell.get("knows_defense") is not False] or cells
    own = list(union.get("flags") or ())
    flags = set(own or (flag for cell in asked for flag in cell.get("flags") or ()))
    if not any(cell.get("images") for cell in cells):
        empty = "the update of every image is exactly zero" if "zero-gradient" in flags else ""
        return empty or "no image was scored"
    found = next((why for flag, why in REASONS.items() if flag in flags and flag not in _LAST), None)
    if "too-few" in flags and (found is None or own):
        return _few(union)
    later = (why for flag, why in REASONS.items() if flag in flags)
    return found or next(later, "what was measured is too little to tell a leak from a failed attack")


_LAST = ("prior-only", "nonfinite", "not-converged")


def _few(union: Cell) -> str:
    """Return that so few updates do not decide, and how many would."""
    need, per = union.get("updates_needed"), max(1, round(union["images"] / max(1, union["updates"])))
    have = "one update is" if union["updates"] == 1 else f"{union['updates']} updates are"
    if need is None:
        return f"{have} too few to tell a leak from a failed attack, and at these rates no number of them would decide"
    if need <= union["updates"]:
        return f"{have} too few to tell a leak from a failed attack: run more"
    stay = " if the rates stay as they are" if hits(union, "asr") or hits(union, "identified") else ""
    return (
        f"{have} too few to tell a leak from a failed attack: run {need} updates or more (--images {need * per}){stay}"
    )
