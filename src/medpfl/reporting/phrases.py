"""What the attacks on one defense say in words: how many images, how sure, or why nothing."""

from __future__ import annotations

from collections.abc import Sequence

from medpfl.core.verdicts import LEAKS
from medpfl.judging.types import Cell, Rate, Union
from medpfl.reporting.words import attacker, counted, known, label, percent, percents

__all__ = ["Cells", "bounded", "by", "counts", "example", "extent", "hits", "labels", "reason", "strength"]

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


def strength(cell: Cell) -> tuple[float, float, float]:
    """Return how much an attack got, for comparing cells: images read back, images recognized, mean SSIM."""
    asr, identified, ssim = (_or_least(rate) for rate in (cell.asr, cell.identified, cell.ssim))
    return asr, identified, ssim


def extent(union: Union) -> tuple[float, float]:
    """Return how much all attacks on a defense got, for comparing defenses."""
    return _or_least(union.asr), _or_least(union.identified)


def _or_least(rate: Rate) -> float:
    return rate.value if rate.value is not None and known(rate.value) else -1.0


def hits(rate: Rate, images: int) -> int | None:
    """Return the number of images behind a rate; ``None`` if it is not known."""
    return round(rate.value * images) if rate.value is not None and known(rate.value) and images else None


def _of(some: int, told: Union) -> str:
    return f"{some or 'none'} of {counted(told.images, 'image')}"


def counts(union: Union) -> str:
    """Return what was read back and recognized, in numbers.

    Args:
        union: what the attacks on a defense show together.
    """
    read, told = hits(union.asr, union.images), hits(union.identified, union.images)
    if read is None:
        return "read back no image"
    one = " of this one update" if union.updates == 1 else ""
    first = f"read back {_of(read, union)}{one}{_rate(union.asr)}"
    if told is None:
        return first
    floor = union.identified_floor
    chance = f"; without the update {percent(floor)}" if known(floor) else ""
    link = "but" if told and not read else "and"
    return f"{first} {link} recognized {told or 'none'} among others{_rate(union.identified, chance)}"


def _rate(rate: Rate, more: str = "") -> str:
    interval = f", 95 % interval {percents(rate.low, rate.high)}" if known(rate.low) and known(rate.high) else ""
    return f" ({percent(rate.value)}{interval}{more})"


def bounded(union: Union) -> str:
    """Return what a failure shows: the tolerance that the upper ends keep, and the numbers."""
    least, read = percent(union.tolerance), hits(union.asr, union.images) or 0
    told = hits(union.identified, union.images)
    return (
        f"with 95 % confidence, these attacks read back fewer than {least} of images and recognize fewer than {least} "
        f"beyond chance (read back {_of(read, union)}, recognized {told or 'none'})"
    )


def by(cells: Cells) -> str:
    """Return which attacks, and the strongest of them."""
    best = max(
        [cell for cell in cells if cell.verdict == LEAKS] or cells,
        key=lambda cell: (strength(cell)[:2], bool(cell.knows_defense), strength(cell)),
    )
    count = len({cell.attack for cell in cells})
    return attacker(best) if count == 1 else f"{count} attacks (the strongest: {attacker(best)})"


def example(cells: Cells) -> str:
    """Return ``TopK(keep=0.1) (read back 5 of 24 images, recognized 8)``."""
    union = cells[0].union
    read, told = hits(union.asr, union.images), hits(union.identified, union.images)
    if read is None:
        return label(cells[0].defense)
    extent = f"read back {_of(read, union)}" + ("" if told is None else f", recognized {told or 'none'}")
    return f"{label(cells[0].defense)} ({extent})"


def labels(cells: Cells) -> str:
    """Return a sentence on the labels that were inferred; empty where they were not."""
    telling = [cell for cell in cells if cell.label_verdict == LEAKS]
    if not telling:
        return ""
    best = max(telling, key=lambda cell: cell.label_accuracy.value or 0.0)
    some = hits(best.label_accuracy, best.images)
    return f" The labels of {some} of {counted(best.images, 'image')} were inferred."


def reason(cells: Cells) -> str:
    """Return why nothing can be concluded of a defense; attacks that know it have the word, if there are any."""
    union = cells[0].union
    asked = [cell for cell in cells if cell.knows_defense is not False] or cells
    own = union.flags
    flags = set(own or (flag for cell in asked for flag in cell.flags))
    if not any(cell.images for cell in cells):
        empty = "the update of every image is exactly zero" if "zero-gradient" in flags else ""
        return empty or "no image was scored"
    found = next((why for flag, why in REASONS.items() if flag in flags and flag not in _LAST), None)
    if "too-few" in flags and (found is None or own):
        return _few(union)
    later = (why for flag, why in REASONS.items() if flag in flags)
    return found or next(later, "what was measured is too little to tell a leak from a failed attack")


_LAST = ("prior-only", "nonfinite", "not-converged")


def _few(union: Union) -> str:
    """Return that so few updates do not decide, and how many would."""
    need, per = union.updates_needed, max(1, round(union.images / max(1, union.updates)))
    have = "one update is" if union.updates == 1 else f"{union.updates} updates are"
    if need is None:
        return f"{have} too few to tell a leak from a failed attack, and at these rates no number of them would decide"
    if need <= union.updates:
        return f"{have} too few to tell a leak from a failed attack: run more"
    stay = " if the rates stay as they are" if union.asr.value or union.identified.value else ""
    return (
        f"{have} too few to tell a leak from a failed attack: run {need} updates or more (--images {need * per}){stay}"
    )
