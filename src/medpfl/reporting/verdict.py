"""The verdict in two plain sentences, for a reader who will read nothing else.

A failed attack is never worded as safety, and an attack whose control failed is never worded as a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, RECORDED, UNDEFENDED, together
from medpfl.reporting.phrases import Cell, Cells, count, did, example, failed, of, reason, strength
from medpfl.reporting.words import attacker, brief, known, label, percent

__all__ = ["MARKS", "verdict_sentences", "verdict_states"]

# A shape beside each color, so that nobody has to tell red from green.
MARKS = {LEAKS: "\u25b2", NO_LEAK: "\u25cb", INCONCLUSIVE: "?"}


def verdict_sentences(summary: Cells, settings: Mapping[str, Any]) -> tuple[str, str]:
    """What the audit found: without a defense, then with.

    Args:
        summary: one mapping for each attack and defense.
        settings: of the run; its grants and its record change the wording.
    """
    if not summary:
        return "Nothing was audited: no attack has finished.", "So nothing can be said about these images."
    bare, groups = _split(_named(summary))
    first = _undefended(bare, settings) if bare else _no_control(summary)
    if not groups:
        return first, "No defense was audited, so what one would hold back is not known."
    if groups[0][0]["defense"] == label(RECORDED):
        return first, _recorded(groups[0], settings)
    return first, (_one(groups[0], settings) if len(groups) == 1 else _many(groups))


def verdict_states(summary: Cells) -> tuple[str | None, str | None]:
    """The outcome that belongs to each sentence; ``None`` where it states none.

    A defense leaks if one attack gets through. Several defenses together are as good as the weakest.
    """
    bare, groups = _split(summary)
    states = [_state(cells) for cells in groups]
    together = next((s for s in (LEAKS, INCONCLUSIVE, NO_LEAK) if s in states), None)
    return (_state(bare) if bare else None), together


def _named(summary: Cells) -> list[Cell]:
    """The cells under names that fit into a sentence; the table has the specs in full."""
    names = brief({cell[key]: None for cell in summary for key in ("attack", "defense")})
    return [{**c, "attack": names[c["attack"]], "defense": _name(c["defense"], names)} for c in summary]


def _name(defense: str, names: Mapping[str, str]) -> str:
    return defense if defense == UNDEFENDED else names[defense]


def _split(summary: Cells) -> tuple[list[Cell], list[list[Cell]]]:
    groups: dict[str, list[Cell]] = {}
    for cell in summary:
        groups.setdefault(cell["defense"], []).append(cell)
    return groups.pop(UNDEFENDED, []), list(groups.values())


def _state(cells: Cells) -> str:
    return together(cell.get("verdict") for cell in cells)


def _top(cells: Cells) -> Cell:
    """The strongest attack of those that decide the state."""
    state = _state(cells)
    return max(
        [c for c in cells if c.get("verdict") == state] or cells,
        key=lambda cell: (strength(cell), bool(cell.get("knows_defense"))),
    )


def _undefended(cells: Cells, settings: Mapping[str, Any]) -> str:
    opening = "Without a defense"
    top = _top(cells)
    if _state(cells) == LEAKS:
        return f"{opening}, {_actor(settings)} {did(top)} with {_by(top, cells)}."
    if _state(cells) == NO_LEAK:
        return f"{opening}, {failed(top)}, not that the images are safe."
    if "control-failed" in (top.get("flags") or ()) and (some := count(top)) is not None:
        what = f"these attacks read back {of(some, top)}"
        return f"{opening}, {what}: they do not work here, so nothing can be said."
    return f"{opening}, nothing can be said: {reason(cells)}."


def _no_control(summary: Cells) -> str:
    controls = [c for c in summary if known(c.get("control_asr"))]
    if not controls:
        return "No attack was run without a defense, so whether these attacks work here at all is not known."
    best = max(controls, key=lambda c: c["control_asr"])
    return f"Without a defense, {label(best['attack'])} reads back {percent(best['control_asr'])} of the images."


def _actor(settings: Mapping[str, Any]) -> str:
    return "a malicious server" if "active" in (settings.get("grants") or ()) else "a curious server"


def _by(cell: Cell, cells: Cells) -> str:
    name = attacker(cell)
    return name if len(cells) == 1 else f"the strongest of these attacks ({name})"


def _one(cells: Cells, settings: Mapping[str, Any]) -> str:
    top, name = _top(cells), label(cells[0]["defense"])
    if _state(cells) == LEAKS:
        end = "so this defense does not protect these images"
        hidden = "; attacks that were not told of it seemed to fail" if _hidden(cells) else ""
        return f"With {name}, {_actor(settings)} still {did(top)} with {_by(top, cells)}, {end}{hidden}."
    if _state(cells) == NO_LEAK:
        return f"With {name} {failed(top, noun=False)}, not that the defense is safe."
    return f"Nothing can be said about the defense {name}: {reason(cells)}."


def _hidden(cells: Cells) -> bool:
    """Whether a leak shows only to attacks that know the defense, where others were run too."""
    naive = [cell for cell in cells if cell.get("knows_defense") is False]
    return bool(naive) and _state(cells) == LEAKS and _state(naive) != LEAKS


def _recorded(cells: Cells, settings: Mapping[str, Any]) -> str:
    top, opening = _top(cells), "From the recorded update"
    if _state(cells) == LEAKS:
        return f"{opening}, {_actor(settings)} {did(top)} with {_by(top, cells)}."
    if _state(cells) == NO_LEAK:
        return f"{opening}, {failed(top)}, not that the update is safe."
    return f"Nothing can be said about the recorded update: {reason(cells)}."


def _many(groups: Sequence[Cells]) -> str:
    leaking, holding, unsure = ([g for g in groups if _state(g) == s] for s in (LEAKS, NO_LEAK, INCONCLUSIVE))
    total = len(groups)
    if len(unsure) == total:
        return f"Nothing can be said about the {total} defenses: {reason([c for g in groups for c in g])}."
    parts = [
        _leaking(leaking, total) if leaking else "",
        _holding(holding, total) if holding else "",
        _unsure(unsure) if unsure else "",
        _seeming([g for g in leaking if _hidden(g)]),
    ]
    sentence = "; ".join(filter(None, parts))
    return sentence[0].upper() + sentence[1:] + "."


def _leaking(groups: Sequence[Cells], total: int) -> str:
    tops = sorted((_top(g) for g in groups), key=strength, reverse=True)
    verb = "leaks" if len(groups) == 1 else "leak"
    who = f"all {total} defenses" if len(groups) == total else f"{len(groups)} of {total} defenses"
    if len(tops) == 1:
        return f"{who} still {verb}: {example(tops[0])}"
    return f"{who} still {verb}, most with {example(tops[0])}, least with {example(tops[-1])}"


def _seeming(groups: Sequence[Cells]) -> str:
    if not groups:
        return ""
    who = label(groups[0][0]["defense"]) if len(groups) == 1 else f"{len(groups)} of these"
    return f"attacks that were not told of the defense seemed to fail against {who}"


def _holding(groups: Sequence[Cells], total: int) -> str:
    best = example(min((_top(g) for g in groups), key=_upper))
    if len(groups) == 1:
        return f"with {best} no leak was found, which does not show that it is safe"
    who = f"the {total} defenses" if len(groups) == total else f"{len(groups)} of {total} defenses"
    return (
        f"with {who} no leak was found, at best with {best}, which shows only that these attacks failed, "
        "not that the defenses are safe"
    )


def _upper(cell: Cell) -> float:
    return cell["asr_high"] if known(cell.get("asr_high")) else 1.0


def _unsure(groups: Sequence[Cells]) -> str:
    who = " and ".join(label(g[0]["defense"]) for g in groups) if len(groups) < 3 else f"{len(groups)} of them"
    return f"nothing can be said about {who}: {reason([c for g in groups for c in g])}"
