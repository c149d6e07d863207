"""What was measured beside what differential privacy allows: rows of a table, and what they are told with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpfl.reporting.words import DASH, known, label, number, percent, percents

__all__ = ["COLUMNS", "EVENTS", "bound_rows", "placed", "reading_bounds", "stands"]

Cell = Mapping[str, Any]
EVENTS = {"asr": "read back", "identified": "identified"}
COLUMNS = (
    "Setting", "Of", "Event", "Measured", "Guessed without the update (kappa)", "Bound at this kappa",
    "No-prior reference", "Measured against the bound",
)  # fmt: skip


def placed(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """For each defense with a bound, the strongest attack's rates, and the bound at the best guess of any cell.

    Args:
        cells: of an audit; those without ``bound`` are left out.
    """
    by_defense: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.get("bound"):
            by_defense.setdefault(cell["defense"], []).append(cell)
    return [_placed(spec, own) for spec, own in by_defense.items()]


def _placed(spec: str, cells: Sequence[Cell]) -> dict[str, Any]:
    found: dict[str, Any] = {"defense": spec, "bound": dict(cells[0]["bound"])}
    for event in EVENTS:
        top = max(cells, key=lambda cell: (cell[event] is not None, cell[event] or 0.0))
        found |= {key: top[key] for key in (event, f"{event}_low", f"{event}_high")}
        marks = [cell["bound"][event] for cell in cells if cell["bound"]["gap"] is None]
        if marks:
            ends = [[mark[key] for mark in marks if mark[key] is not None] for key in marks[0]]
            found["bound"][event] = {key: max(own, default=None) for key, own in zip(marks[0], ends, strict=True)}
    return found


def stands(one: Cell, event: str) -> str:
    """Where a measured rate lies, its interval and that of kappa considered."""
    mark = one["bound"].get(event)
    if mark is None or mark["bound"] is None or one[event] is None:
        return DASH
    if one[event] <= mark["bound"]:
        return "not above"
    if one[f"{event}_low"] is None or one[f"{event}_low"] <= mark["bound_high"]:
        return "above, within the intervals"
    return "above: more can be guessed than these baselines do, or the defense is not what it says"


def bound_rows(ones: Sequence[Cell]) -> list[list[tuple[str, str]]]:
    """A row of values, each with a note, for each defense and event."""
    return [_row(one, event) for one in ones for event in EVENTS]


def _row(one: Cell, event: str) -> list[tuple[str, str]]:
    bound = one["bound"]
    rate = (percent(one[event]), percents(one[f"{event}_low"], one[f"{event}_high"]))
    if bound["gap"] is not None:
        none = (DASH, f"not stated: {bound['gap']}")
        return [(label(one["defense"]), ""), (DASH, ""), (EVENTS[event], ""), rate, (DASH, ""), none, (DASH, ""),
                (DASH, "")]  # fmt: skip
    mark = bound[event]
    units = {one["unit"] for one in bound["mechanisms"]}
    ends = known(mark["kappa_high"]) and mark["kappa_high"] > mark["kappa"]
    return [
        (label(one["defense"]), ""),
        ("an image (of all of a client)" if units == {"client"} else "an image", _mechanisms(bound)),
        (EVENTS[event], ""),
        rate,
        (_share(mark["kappa"]), f"up to {_share(mark['kappa_high'])}" if ends else ""),
        (_share(mark["bound"]), f"{_share(mark['bound_high'])} at {_share(mark['kappa_high'])}" if ends else ""),
        (_share(bound["no_prior"][event]), ""),
        (stands(one, event), ""),
    ]


def _share(rate: float | None) -> str:
    """A rate in percent, small ones with two digits."""
    return percent(rate) if rate is None or rate == 0 or rate >= 0.1 else f"{number(100 * rate, '.2g')} %"


def _mechanisms(bound: Mapping[str, Any]) -> str:
    rounds = "1 round" if bound["rounds"] == 1 else f"{bound['rounds']} rounds"
    return f"{' and '.join(map(_mechanism, bound['mechanisms']))}, over {rounds}"


def _mechanism(one: Mapping[str, Any]) -> str:
    steps = "1 step" if one["steps"] == 1 else f"{one['steps']} steps"
    return f"noise {one['noise']:g}, rate {one['rate']:.3g}, {steps}"


def reading_bounds() -> tuple[str, ...]:
    """How to read bound and reference."""
    return (
        "Measured success is a lower bound of the risk. The curve is an upper bound, 1 \u2212 f(kappa), for any "
        "attack, also one that was not run, by an adversary that is right with probability kappa without the "
        "update: the trade-off function f is that of the noise, over the rounds that the attack sees, for one record "
        "that is there or not. It is of one record on average, not of the worst one, nor of several of one patient "
        "together.",
        "Kappa is an assumption. The table takes the best of the guesses that were made without the update (the mean "
        "image, the nearest other image, random numbers; by chance, of identification); who knows more of the images "
        "has a larger kappa, and the curve says what that allows.",
        "The no-prior reference is what an adversary that also made the model, and knows nothing of images, would "
        "reach (arXiv:2402.12861, drawn and scored like any guess). It is no bound: an attack with a prior can beat "
        "it.",
    )
