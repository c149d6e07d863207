"""Measured success beside the success bound of differential privacy: table rows, and notes on how to read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from medpfl.judging.types import Bound, Cell, Mark, Rate, StatedMechanism
from medpfl.reporting.words import DASH, label, number, percent, percents

__all__ = ["COLUMNS", "EVENTS", "Placed", "bound_rows", "in_words", "placed", "reading_bounds", "stands"]

EVENTS = {"asr": "reconstructed", "identified": "re-identified"}
COLUMNS = (
    "Setting", "Bound for", "Event", "Measured", "Guessed without the update (kappa)", "Bound at this kappa",
    "No-prior reference", "Measured against the bound",
)  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """A defense's success bound and the strongest attack's rates.

    Attributes:
        defense: the defense's spec.
        bound: the bound, with its marks at the best guess in any cell.
        asr, identified: the strongest attack's rates.
    """

    defense: str
    bound: Bound
    asr: Rate
    identified: Rate

    def rate(self, event: str) -> Rate:
        """Return the measured rate for a key of `EVENTS`."""
        return self.asr if event == "asr" else self.identified


def placed(cells: Sequence[Cell]) -> list[Placed]:
    """Return the bound and the strongest attack's rates for each defense that has a bound.

    Args:
        cells: an audit's cells; those without a bound are left out.
    """
    by_defense: dict[str, list[tuple[Cell, Bound]]] = {}
    for cell in cells:
        if cell.bound is not None:
            by_defense.setdefault(cell.defense, []).append((cell, cell.bound))
    return [_placed(spec, own) for spec, own in by_defense.items()]


def _placed(spec: str, cells: Sequence[tuple[Cell, Bound]]) -> Placed:
    bound = cells[0][1]
    marks = {event: [mark for _, own in cells if (mark := own.of(event)) is not None] for event in EVENTS}
    if marks["asr"] and marks["identified"]:
        bound = replace(bound, asr=_largest(marks["asr"]), identified=_largest(marks["identified"]))
    return Placed(spec, bound, *(_top([cell.rate(event) for cell, _ in cells]) for event in EVENTS))


def _top(rates: Sequence[Rate]) -> Rate:
    return max(rates, key=lambda rate: (rate.value is not None, rate.value or 0.0))


def _largest(marks: Sequence[Mark]) -> Mark:
    def top(values: Iterable[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    return Mark(
        kappa=top(mark.kappa for mark in marks),
        kappa_high=top(mark.kappa_high for mark in marks),
        bound=top(mark.bound for mark in marks),
        bound_high=top(mark.bound_high for mark in marks),
    )


_GUESSED = 0.1
"""Success rate without the update for which the bound is put into words."""


def in_words(one: Placed) -> str:
    """Return the bound in one sentence, for images that someone would guess with 10 % without the update.

    >>> curve = ((0.05, 0.2), (0.15, 0.4))
    >>> in_words(Placed("DPSGD()", Bound(rounds=1, gap=None, curve=curve), Rate(), Rate()))
    'With DPSGD, no attack, however clever, can succeed on more than 40 % of images that it would guess with 10 %.'
    """
    name = label(one.defense)
    if one.bound.gap is not None or not one.bound.curve:
        return f"With {name}, no limit on every possible attack can be stated: {one.bound.gap}."
    most = _at(one.bound.curve, _GUESSED)
    if most >= 1:
        return f"With {name}, the noise is too weak to limit every possible attack."
    return (
        f"With {name}, no attack, however clever, can succeed on more than {_upwards(most)} of images that it would "
        f"guess with {percent(_GUESSED)}."
    )


def _at(curve: Sequence[Sequence[float]], kappa: float) -> float:
    """Return a rising curve's value at the next known point, which is not below its value at `kappa`."""
    return next((bound for known, bound in sorted(map(tuple, curve)) if known >= kappa), 1.0)


def _upwards(share: float) -> str:
    return f"{ceil(round(100 * share, 6))} %"


def stands(one: Placed, event: str) -> str:
    """Return how a measured rate compares with the bound, given both its interval and kappa's."""
    mark, rate = one.bound.of(event), one.rate(event)
    if mark is None or mark.bound is None or rate.value is None:
        return DASH
    if rate.value <= mark.bound:
        return "not above"
    if rate.low is None or mark.bound_high is None or rate.low <= mark.bound_high:
        return "above, within the intervals"
    return "above: someone can guess better than these baselines, or the defense is not what it states"


def bound_rows(ones: Sequence[Placed]) -> list[list[tuple[str, str]]]:
    """Return a row for each defense and event; each value comes with a note."""
    return [_row(one, event) for one in ones for event in EVENTS]


def _row(one: Placed, event: str) -> list[tuple[str, str]]:
    bound, mark, rate = one.bound, one.bound.of(event), one.rate(event)
    measured = (percent(rate.value), percents(rate.low, rate.high))
    if bound.gap is not None or mark is None:
        none = (DASH, f"not stated: {bound.gap}")
        return [(label(one.defense), ""), (DASH, ""), (EVENTS[event], ""), measured, (DASH, ""), none, (DASH, ""),
                (DASH, "")]  # fmt: skip
    units = {mechanism.unit for mechanism in bound.mechanisms or ()}
    ends = mark.kappa is not None and mark.kappa_high is not None and mark.kappa_high > mark.kappa
    return [
        (label(one.defense), ""),
        ("an image (as part of its client's data)" if units == {"client"} else "an image", _mechanisms(bound)),
        (EVENTS[event], ""),
        measured,
        (_share(mark.kappa), f"up to {_share(mark.kappa_high)}" if ends else ""),
        (_share(mark.bound), f"{_share(mark.bound_high)} at {_share(mark.kappa_high)}" if ends else ""),
        (_share((bound.no_prior or {}).get(event)), ""),
        (stands(one, event), ""),
    ]


def _share(rate: float | None) -> str:
    """Format a rate in percent; small rates get two digits."""
    return percent(rate) if rate is None or rate == 0 or rate >= 0.1 else f"{number(100 * rate, '.2g')} %"


def _mechanisms(bound: Bound) -> str:
    rounds = "1 round" if bound.rounds == 1 else f"{bound.rounds} rounds"
    return f"{' and '.join(map(_mechanism, bound.mechanisms or ()))}, over {rounds}"


def _mechanism(one: StatedMechanism) -> str:
    steps = "1 step" if one.steps == 1 else f"{one.steps} steps"
    return f"noise {one.noise:g}, rate {one.rate:.3g}, {steps}"


def reading_bounds() -> tuple[str, ...]:
    """Return notes on how to read the bound, kappa and the no-prior reference."""
    return (
        "Measured success is a lower bound on the risk. The curve is an upper bound, 1 \u2212 f(kappa): no attacker "
        "who guesses right with probability kappa without the update can do better with it, not even with an attack "
        "that was not run. Here f is the trade-off function of the defense's noise over the rounds that the attacker "
        "sees, for adding or removing one record. The bound holds for one record on average. It does not hold for the "
        "most exposed record, or for several records of one patient together.",
        "Kappa is an assumption. The table uses the best guess that we made without the update: the mean image, the "
        "nearest other image or random numbers; for re-identification, chance. Someone who knows more about the images "
        "has a larger kappa; the curve shows the bound for it.",
        "The no-prior reference is the success of an attacker who also built the model but knows nothing about images "
        "(arXiv:2402.12861; drawn and scored like any guess). It is not a bound: an attack with a prior can exceed it.",
    )
