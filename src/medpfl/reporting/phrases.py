"""Phrases for the result of all attacks on one defense: counts, intervals, or the reason for no conclusion."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.messages import counted
from medpfl.core.verdicts import LEAKS
from medpfl.judging.types import Cell, Rate, Union
from medpfl.reporting.words import attacker, known, label, percent, percents, share

__all__ = [
    "EASY",
    "Cells",
    "bounded",
    "by",
    "counts",
    "easier",
    "example",
    "extent",
    "grouped",
    "hits",
    "images_needed",
    "in_number",
    "is_recorded",
    "labels",
    "reason",
    "spent",
    "strength",
    "telling",
    "trials",
]

Cells = Sequence[Cell]

EASY = "medpfl audit IMAGES --model MODEL --mode eval --batch-size 1"
"""An audit that is easier for attacks than that of a record, whose plan no option changes."""

_BLUNT = "these attacks fail here even without a defense"
_SPENT = "the searches had too small a budget, and found too little even without a defense (raise --minutes)"

# Ordered by priority: the first raised flag gives the reason.
REASONS = {
    "record-mismatch": "the recorded update does not match the images under the stated plan and defense",
    "misdisclosed": "this defense does not do what it discloses, so no attack knew what it does",
    "undisclosed": "this defense does not disclose what an attacker who knows its code could undo "
    "(docs/extending.md: disclose)",
    "disclosure-unused": "these attacks failed, but they made no use of what the defense discloses",
    "naive-attack": "these attacks failed, but they did not know the defense",
    "control-failed": _BLUNT,
    "control-low": "these attacks may be too weak, since it is not certain that they expose more images than the "
    "tolerance even without the defense",
    "masked-vector": "one client's masked message reveals more than random numbers would",
    "control-weak": "without the defense, these attacks only re-identify the images of one client and reconstruct "
    "none, and a sum over clients is harder to attack",
    "patients-leak": "few images are exposed, but some patients are exposed by one of their images",
    "incomplete": "some images were not attacked, because a worker process ended (repeat the command)",
    "out-of-budget": "the searches had too small a budget to converge (raise --minutes)",
    "worst-candidate": "an attack reconstructed images among its candidates but did not choose them",
    "small-gallery": "at least 20 images are needed to test re-identification",
    "prior-only": "a guess made without the update does as well as these attacks",
    "nonfinite": "the attacks ended in numbers that are not finite",
    "not-converged": "the attacks stopped before they converged",
}


_OF_ONE = {
    r"([Tt])hese attacks (only )?(expose|fail|reconstruct|work)\b": r"\1his attack \2\3s",
    r"these attacks only re-identify (.*?) and reconstruct\b": r"this attack only re-identifies \1 and reconstructs",
    r"\b([Tt])hese attacks do not\b": r"\1his attack does not",
    r"\b([Tt])hese attacks\b": r"\1his attack",
    r"\b([Aa])ttacks that did not know\b": r"\1n attack that did not know",
    r"\battacks that were run\b": "attack that was run",
    r"\bthe attacks (stopped|ended)\b": r"the attack \1",
    r"(attack .*?%.*?) and re-identify fewer\b": r"\1 and re-identifies fewer",
    r"(attack that was run: .*?)\bthey expose\b": r"\1it exposes",
    r"([Tt]his attack [^.]*?)\bthey (made|did|knew|converged)\b": r"\1it \2",
    r"(the attack stopped before )they": r"\1it",
    r"([Tt]his attack [^.]*?)\bthey expose\b": r"\1it exposes",
    r"\bThey do not work here\b": "It does not work here",
    r"\bnone was run without it\b": "it was not run without it",
}
"""Sentences on several attacks, as patterns, and the same on one."""


def in_number(text: str, cells: Cells) -> str:
    """Return a text on attacks in the singular if the cells hold a single one.

    >>> one = [Cell(attack="iDLG()", defense="QSGD()", knows_defense=knows) for knows in (False, True)]
    >>> in_number("These attacks fail here, but they did not know the defense.", one)
    'This attack fails here, but it did not know the defense.'
    """
    if len({cell.attack for cell in cells}) != 1:
        return text
    for several, single in _OF_ONE.items():
        text = re.sub(several, single, text)
    return text


def strength(cell: Cell) -> tuple[float, float, float]:
    """Return a sort key for comparing attacks: reconstruction rate, re-identification rate, mean SSIM."""
    asr, identified, ssim = (_or_least(rate) for rate in (cell.asr, cell.identified, cell.ssim))
    return asr, identified, ssim


def extent(union: Union) -> tuple[float, float]:
    """Return a sort key for comparing defenses: reconstruction and re-identification rates of all attacks together."""
    return _or_least(union.asr), _or_least(union.identified)


def _or_least(rate: Rate) -> float:
    return rate.value if rate.value is not None and known(rate.value) else -1.0


def hits(rate: Rate, images: int) -> int | None:
    """Return the number of images that a rate stands for, or ``None`` if the rate is unknown."""
    return round(rate.value * images) if rate.value is not None and known(rate.value) and images else None


def _of(some: int, told: Union) -> str:
    return f"{some or 'none'} of {counted(told.images, 'image')}"


def counts(union: Union) -> str:
    """Return how many images attacks reconstructed and re-identified, with rates and 95 % intervals.

    The text follows a subject: ``reconstructed 5 of 24 images (...) and re-identified 8 (...)``. Re-identification is
    left out where it is unknown.

    Args:
        union: the combined result of all attacks on a defense.
    """
    read, told = hits(union.asr, union.images), hits(union.identified, union.images)
    if read is None:
        return "reconstructed no image"
    one = " from this one update" if union.updates == 1 else ""
    few = trials(union.images, union.updates, union.per_update)
    first = f"reconstructed {_of(read, union)}{one}{_rate(union.asr, union.tolerance, f'; {few}' if few else '')}"
    if told is None:
        return first
    floor = union.identified_floor
    chance = f"; {percent(floor)} without the update" if known(floor) else ""
    link = "but" if told and not read else "and"
    return f"{first} {link} re-identified {told or 'none'}{_rate(union.identified, union.tolerance, chance)}"


def is_recorded(settings: Settings) -> bool:
    """Return True for an audit of recorded updates: options cannot change their plan, images and number."""
    return settings.record is not None


def spent(cells: Cells) -> bool:
    """Return True if the searches of all attacks stopped at their budget, so that longer ones may find more."""
    return bool(cells) and all("out-of-budget" in cell.flags for cell in cells)


def trials(images: int, updates: int, per_update: int) -> str:
    """Return how few independent updates an interval counts; ``""`` if each image has an update of its own.

    Args:
        images: number of images, each counted once in every draw of weights.
        updates: number of independent updates.
        per_update: number of images in one update.

    >>> trials(8, 2, 4), trials(8, 4, 1), trials(8, 8, 1)
    ('8 images, but only 2 independent updates', '8 guesses, but only 4 independent updates', '')
    """
    if not 0 < updates < images:
        return ""
    what = f"{images} guesses" if images > updates * per_update else counted(images, "image")
    return f"{what}, but only {counted(updates, 'independent update')}"


def _rate(rate: Rate, tolerance: float, more: str = "") -> str:
    ends = percents(rate.low, rate.high, tolerance)
    interval = f", 95 % interval {ends}" if known(rate.low) and known(rate.high) else ""
    return f" ({percent(rate.value)}{interval}{more})"


def bounded(union: Union) -> str:
    """Return what failed attacks do show: both rates lie below the tolerance with 95 % confidence."""
    least, read = share(union.tolerance), hits(union.asr, union.images) or 0
    told = hits(union.identified, union.images)
    return (
        f"with 95 % confidence, these attacks reconstruct fewer than {least} of images and re-identify fewer than "
        f"{least} beyond chance (here: reconstructed {_of(read, union)}, re-identified {told or 'none'})"
    )


def by(cells: Cells) -> str:
    """Return the attack's name, both its forms if neither has all counts, or how many attacks and the strongest."""
    best = max(
        [cell for cell in cells if cell.verdict == LEAKS] or cells,
        key=lambda cell: (strength(cell)[:2], bool(cell.knows_defense), strength(cell)),
    )
    count = len({cell.attack for cell in cells})
    if count > 1:
        return f"{count} attacks (the strongest: {attacker(best)})"
    pairs = ((best.union.asr, best.asr), (best.union.identified, best.identified))
    more = any((hits(both, best.images) or 0) > (hits(own, best.images) or 0) for both, own in pairs)
    return f"{label(best.attack)}, naive and adaptive together" if len(cells) > 1 and more else attacker(best)


def example(cells: Cells) -> str:
    """Return a defense with its counts: ``TopK(keep=0.1) (reconstructed 5 of 24 images, re-identified 8)``."""
    union = cells[0].union
    read, told = hits(union.asr, union.images), hits(union.identified, union.images)
    if read is None:
        return label(cells[0].defense)
    extent = f"reconstructed {_of(read, union)}" + ("" if told is None else f", re-identified {told or 'none'}")
    return f"{label(cells[0].defense)} ({extent})"


def labels(cells: Cells) -> str:
    """Return a sentence on the inferred labels, or an empty string if no attack's labels leak."""
    telling = [cell for cell in cells if cell.label_verdict == LEAKS]
    if not telling:
        return ""
    best = max(telling, key=lambda cell: cell.label_accuracy.value or 0.0)
    some = hits(best.label_accuracy, best.images)
    exact, counts = best.counts_exact.value, ""
    if exact is not None and known(exact):
        counts = f" The number of images of each class was exact in {percent(exact)} of updates."
    return f" The labels of {some} of {counted(best.images, 'image')} were inferred.{counts}"


def reason(cells: Cells, recorded: bool = False) -> str:
    """Return why a defense's result is inconclusive.

    The reason comes from the flags of all attacks together or, if there are none, from the adaptive attacks' flags.
    Naive attacks count only if no other attack was run.

    Args:
        cells: the cells of one defense.
        recorded: True for recorded updates: more of them need more records, not an option.
    """
    union = cells[0].union
    asked = [cell for cell in cells if cell.knows_defense is not False] or cells
    own = union.flags
    flags = set(own or (flag for cell in asked for flag in cell.flags))
    if not any(cell.images for cell in cells):
        empty = "every image's update is exactly zero" if "zero-gradient" in flags else ""
        return empty or "no image was scored"
    found = next((why for flag, why in REASONS.items() if flag in flags and flag not in _LAST), None)
    if "too-few" in flags and (found is None or own):
        return _few(union, recorded)
    if found == _BLUNT and spent(asked):
        return _SPENT
    later = (why for flag, why in REASONS.items() if flag in flags)
    return found or next(later, "these results cannot tell a leak from a failed attack")


_LAST = ("prior-only", "nonfinite", "not-converged")


def telling(points: Iterable[Json]) -> str | None:
    """Return the most telling flag of a frontier's points, by the order of `REASONS`; ``None`` if none is a reason."""
    flags = {flag for point in points for flag in point["flags"]}
    return next((flag for flag in REASONS if flag in flags), None)


def images_needed(union: Union) -> int | None:
    """Return the number of images that would probably decide a test; ``None`` if no number would at these rates.

    If there are enough updates for one test already, the correction for testing several things at once prevents a
    decision, which twice as many updates allow.
    """
    if union.updates_needed is None:
        return None
    updates = union.updates_needed if union.updates_needed > union.updates else 2 * union.updates
    return updates * union.per_update


def easier(settings: Settings) -> list[str]:
    """Return the options under which attacks have it easier than in a run: those that it does not have already.

    There are none for a record, whose plan no option changes.
    """
    if is_recorded(settings):
        return []
    plan, layers = str(settings.experiment.get("plan")), settings.model
    train = "mode='eval'" not in plan
    drawn = bool(layers.get("dropout_layers"))
    moded = train and (drawn or layers.get("batch_norm_layers") != 0)
    hidden = train and drawn and "masks" not in (settings.grants or ())
    several = settings.experiment.get("images_per_update") != 1
    options = {
        "--mode eval": moded,
        "--grant masks": hidden,
        "--batch-size 1": several and not re.search(r"batch_size=1\b", plan),
        "--local-images 1": several and "local_images=" in plan,
    }
    return [option for option, helps in options.items() if helps]


def grouped(cells: Cells) -> list[list[Cell]]:
    """Return the cells of each defense, in the order of the defenses' first cells."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.defense, []).append(cell)
    return list(groups.values())


def _few(union: Union, recorded: bool) -> str:
    """Return a phrase that the updates are too few, and how many would be enough."""
    need = union.updates_needed
    have = "one update is" if union.updates == 1 else f"{union.updates} updates are"
    if need is None:
        return f"{have} too few to tell a leak from a failed attack; at these rates, no number would be enough"
    images = "" if recorded else f" (--images {images_needed(union)})"
    if need <= union.updates:
        twice = f"{'audit twice as many records' if recorded else 'attack twice as many'}{images}"
        return f"{have} too few to tell a leak from a failed attack; {twice}"
    stay = " if the rates stay the same" if union.asr.value or union.identified.value else ""
    enough = f"at least {need} are needed{images}{stay}"
    return f"{have} too few to tell a leak from a failed attack; {enough}"
