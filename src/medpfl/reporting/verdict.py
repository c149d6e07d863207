"""The verdict in two plain statements, for a reader who reads nothing else.

A failed attack is never worded as safety, and an attack whose control failed is never worded as a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from medpfl.core.experiments.settings import Settings
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, RECORDED, UNDEFENDED
from medpfl.judging.types import Cell
from medpfl.reporting.phrases import (
    EASY,
    Cells,
    bounded,
    by,
    counts,
    easier,
    example,
    extent,
    hits,
    in_number,
    is_recorded,
    labels,
    reason,
    spent,
)
from medpfl.reporting.words import brief, known, label, percent, share

__all__ = ["MARKS", "verdict_sentences"]

# A shape beside each color, so that nobody has to tell red from green.
MARKS = {LEAKS: "\u25b2", NO_LEAK: "\u25cb", INCONCLUSIVE: "?"}


def verdict_sentences(summary: Cells, settings: Settings) -> tuple[str, str]:
    """Return the audit's findings without a defense, and with defenses.

    Args:
        summary: the audit's cells.
        settings: the run's settings; the wording depends on its grants and its record.
    """
    if not summary:
        return "No attack has finished.", "There is no result for these images yet."
    first, second = _sentences(summary, settings)
    return in_number(first, summary), in_number(second, summary)


def _sentences(summary: Cells, settings: Settings) -> tuple[str, str]:
    bare, groups = _split(_named(summary))
    recorded = bool(groups) and groups[0][0].defense == label(RECORDED)
    first = _undefended(bare, settings) if bare else _no_control(summary)
    if not groups:
        return first, "No defense was tested. Add one with --defense."
    if recorded:
        return first, _recorded(groups[0], settings)
    return first, (_one(groups[0], settings) if len(groups) == 1 else _many(groups))


def _named(summary: Cells) -> list[Cell]:
    """Return the cells with specs shortened to fit into a sentence; the table shows them in full."""
    names = brief(dict.fromkeys(spec for cell in summary for spec in (cell.attack, cell.defense)))
    return [replace(c, attack=names[c.attack], defense=_name(c.defense, names)) for c in summary]


def _name(defense: str, names: Mapping[str, str]) -> str:
    return defense if defense == UNDEFENDED else names[defense]


def _split(summary: Cells) -> tuple[list[Cell], list[list[Cell]]]:
    groups: dict[str, list[Cell]] = {}
    for cell in summary:
        groups.setdefault(cell.defense, []).append(cell)
    return groups.pop(UNDEFENDED, []), list(groups.values())


def _state(cells: Cells) -> str:
    return cells[0].union.verdict


def _undefended(cells: Cells, settings: Settings) -> str:
    union = cells[0].union
    if _state(cells) == LEAKS:
        return f"Without a defense, {_actor(settings)} {counts(union)} with {by(cells)}."
    if "control-failed" in cells[0].flags and union.images:
        longer = {"out-of-budget": "longer searches (--minutes); ", "not-converged": "more steps; "}
        steps = next((text for flag, text in longer.items() if all(flag in cell.flags for cell in cells)), "")
        rest = "; ".join(easier(settings)) or "other attacks (--attack)"
        if is_recorded(settings):
            rest += f"; their images under an easier plan ({EASY})"
        why = "The searches had too small a budget" if spent(cells) else "They do not work here"
        return (
            f"Without a defense, these attacks {counts(union)}. {why}, so this test says nothing about safety. "
            f"Try: {steps}medpfl check-model; {rest}."
        )
    return _open("Without a defense", cells, settings)


def _no_control(summary: Cells) -> str:
    controls = [c for c in summary if known(c.control_asr)]
    if not controls:
        return "No attack was run without a defense, so it is unknown whether these attacks work here at all."
    best = max(controls, key=lambda c: c.control_asr or 0.0)
    return f"Without a defense, {label(best.attack)} reconstructs {percent(best.control_asr)} of the images."


def _actor(settings: Settings) -> str:
    return "a malicious server" if "active" in (settings.grants or ()) else "a curious server"


def _one(cells: Cells, settings: Settings) -> str:
    union, opening = cells[0].union, f"With {label(cells[0].defense)}"
    if _state(cells) == LEAKS:
        end = "This defense does not protect these images"
        hidden = "; attacks that did not know it seemed to fail" if _hidden(cells) else ""
        still = "still " if hits(union.asr, union.images) else ""
        return f"{opening}, {_actor(settings)} {still}{counts(union)} with {by(cells)}. {end}{hidden}."
    return _without_leak(opening, cells, settings)


_NOT_SAFE = "A failed attack does not show that the defense is safe."


_UNCHECKED = (
    "Whether these attacks used what they knew of the defense was not checked, since none was run without it "
    "(disclosure-unchecked)"
)


def _is_unchecked(cells: Cells) -> bool:
    """Return True if no attack whose failure counts was compared with itself without the defense's disclosure."""
    holding = [cell for cell in cells if cell.verdict == NO_LEAK]
    return bool(holding) and all("disclosure-unchecked" in cell.flags for cell in holding)


def _without_leak(opening: str, cells: Cells, settings: Settings) -> str:
    """Return the statement for a result of *no leak found* or *inconclusive*."""
    if _state(cells) == NO_LEAK:
        unchecked = f" {_UNCHECKED}." if _is_unchecked(cells) else ""
        return f"{opening}, no leak was found: {bounded(cells[0].union)}. {_NOT_SAFE}{unchecked}{labels(cells)}"
    return _open(opening, cells, settings)


def _open(opening: str, cells: Cells, settings: Settings) -> str:
    """Return the statement for an inconclusive result: the counts and the reason."""
    union, why = cells[0].union, reason(cells, is_recorded(settings))
    if not union.images:
        return f"{opening}, there is no result: {why}."
    return f"{opening}, {_actor(settings)} {counts(union)}. This is inconclusive: {why}.{labels(cells)}"


def _hidden(cells: Cells) -> bool:
    """Return True if only adaptive attacks found the leak although naive ones were run too."""
    naive = [cell for cell in cells if cell.knows_defense is False]
    return bool(naive) and _state(cells) == LEAKS and all(cell.verdict != LEAKS for cell in naive)


def _recorded(cells: Cells, settings: Settings) -> str:
    union, opening = cells[0].union, "From the recorded update"
    if _state(cells) == LEAKS:
        return f"{opening}, {_actor(settings)} {counts(union)} with {by(cells)}."
    return _without_leak(opening, cells, settings)


def _many(groups: Sequence[Cells]) -> str:
    leaking, holding, unsure = ([g for g in groups if _state(g) == s] for s in (LEAKS, NO_LEAK, INCONCLUSIVE))
    total = len(groups)
    if len(unsure) == total:
        return f"The results for {_all(total)} defenses are inconclusive: {_reasons(unsure)}."
    parts = [
        _leaking(leaking, total) if leaking else "",
        _holding(holding, total) if holding else "",
        _unsure(unsure) if unsure else "",
        _seeming([g for g in leaking if _hidden(g)]),
    ]
    sentence = ". ".join(filter(None, parts))
    return sentence[0].upper() + sentence[1:] + "."


def _all(total: int) -> str:
    return "both" if total == 2 else f"all {total}"


def _leaking(groups: Sequence[Cells], total: int) -> str:
    ordered = sorted(groups, key=lambda cells: extent(cells[0].union), reverse=True)
    verb = "leaks" if len(groups) == 1 else "leak"
    every = _all(total).capitalize()
    who = f"{every} defenses" if len(groups) == total else f"{len(groups)} of {total} defenses"
    if len(ordered) == 1:
        return f"{who} still {verb}: {example(ordered[0])}"
    return f"{who} still {verb}, the most with {example(ordered[0])} and the least with {example(ordered[-1])}"


def _seeming(groups: Sequence[Cells]) -> str:
    if not groups:
        return ""
    who = label(groups[0][0].defense) if len(groups) == 1 else f"{len(groups)} of these"
    return f"Attacks that did not know the defense seemed to fail against {who}"


def _holding(groups: Sequence[Cells], total: int) -> str:
    least = share(groups[0][0].union.tolerance)
    if len(groups) == 1:
        who = example(groups[0])
    else:
        count = (
            f"{'either' if total == 2 else 'any'} of the {total} defenses"
            if len(groups) == total
            else f"{len(groups)} of {total} defenses"
        )
        who = f"{count}, for example {example(min(groups, key=lambda cells: extent(cells[0].union)))}"
    return (
        f"No leak was found with {who}: with 95 % confidence, these attacks reconstruct fewer than {least} of images "
        f"and re-identify fewer than {least} beyond chance. This does not show that the images are safe"
        + (f". {_UNCHECKED}" if any(map(_is_unchecked, groups)) else "")
    )


def _unsure(groups: Sequence[Cells]) -> str:
    who = " and ".join(map(example, groups)) if len(groups) < 3 else f"{len(groups)} defenses"
    return f"Inconclusive for {who}: {_reasons(groups)}"


def _reasons(groups: Sequence[Cells]) -> str:
    return "; or ".join(dict.fromkeys(map(reason, groups)))
