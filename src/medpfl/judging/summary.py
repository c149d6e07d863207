"""One entry for each attack, told of the defense or not, and each defense, computed from rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medpfl.core.types import Finding
from medpfl.core.verdicts import (
    INCONCLUSIVE,
    LEAKS,
    MASKED,
    NO_LEAK,
    RANDOM_UPDATE,
    RECORDED,
    TOLERANCE,
    UNDEFENDED,
)
from medpfl.judging.cells import Evidence, evidence_of, labels_of, masked_evidence, numbers_of, union_of
from medpfl.judging.evidence import ALPHA, Tally, holm
from medpfl.judging.false_security import false_security
from medpfl.judging.patients import by_patient
from medpfl.judging.verdict import LIMITS, doubts_of, limits_of, p_values, untested, updates_to_decide, verdict_of

__all__ = ["Context", "summarize"]

_MISMATCH = 1e-3
"""Relative difference from which a recorded update is not what its truth gives."""

_LESS_NOISE = 0.85
"""Of the distance of two draws of the stated noise; without any noise, a record is at 0.71 of it from a draw."""

_BARRING = {"record-mismatch", "masked-vector"}
"""Flags of a cell of which no failure says anything."""

_Key = tuple[str, str, bool]
"""An attack, a defense, and whether the attack is told of it."""

Cell = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What is known of a run beside its rows, and decides what a failed attack says.

    Attributes:
        tolerance: share of images below which a rate must be shown to lie before it counts as no leak.
        server_side: specs of the defenses of which a part acts only at the server.
        server_only: specs of the defenses of which no part acts at the client: there is nothing to know.
        disclosure: by the spec of a defense, what playing it showed of the disclosure (``changes``: whether it changes
            what is sent at all; ``silent``: whether it does so and discloses nothing; ``problems``: contradictions).
        record: of a recorded update, the ``defense`` that it is said to have passed, its relative ``difference``
            from what the truth then gives, and the ``spread`` of the latter with the client's own draws.
    """

    tolerance: float = TOLERANCE
    server_side: Sequence[str] = ()
    server_only: Sequence[str] = ()
    disclosure: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Context:
        """Return the context that a run's settings hold; a defense that was not probed is taken for undisclosed."""
        own = {name: settings[name] for name in cls.__dataclass_fields__ if settings.get(name) is not None}
        untold = {
            spec: {"changes": True, "silent": True} for spec in (settings.get("experiment") or {}).get("defenses", ())
        }
        return cls(**{**own, "disclosure": {**untold, **own.get("disclosure", {})}})

    def reason(self, defense: str, knows: bool) -> str | None:
        """Return why the failure of an attack says nothing, as far as what it is told decides that."""
        acting = (self.record or {}).get("defense", UNDEFENDED) if defense == RECORDED else defense
        if acting in (UNDEFENDED, *self.server_only):
            return None
        found = self.disclosure.get(defense, {})
        if found.get("problems"):
            return "misdisclosed"
        if found.get("silent"):
            return "undisclosed"
        return None if knows or found.get("changes") is False else "naive-attack"

    def informed(self, defense: str, knows: bool) -> bool | None:
        """Return whether an attack is told of a defense; ``None`` where there is nothing to tell."""
        acting = (self.record or {}).get("defense", UNDEFENDED) if defense == RECORDED else defense
        bare = acting in (UNDEFENDED, *self.server_only) or self.disclosure.get(defense, {}).get("changes") is False
        return None if bare else knows

    @property
    def mismatch(self) -> bool:
        """Whether a recorded update is too far from what it should be, or nearer than the stated noise lets it."""
        if self.record is None:
            return False
        difference = self.record["difference"]
        too_near = difference < _LESS_NOISE * self.record.get("noise", 0.0)
        return too_near or not difference <= _MISMATCH + self.record.get("spread", 0.0)  # NaN is far too


@dataclass(frozen=True)
class _Rows:
    """Rows by what they are of."""

    cells: dict[_Key, list[Finding]]
    random: dict[str, list[Finding]]
    masked: dict[tuple[str, str], list[Finding]]

    @classmethod
    def of(cls, rows: Sequence[Finding]) -> _Rows:
        found = cls({}, {}, {})
        for row in rows:
            if row.control == RANDOM_UPDATE:
                found.random.setdefault(row.attack, []).append(row)
            elif row.control == MASKED:
                found.masked.setdefault((row.attack, row.defense), []).append(row)
            else:
                found.cells.setdefault((row.attack, row.defense, row.knows_defense), []).append(row)
        return found

    def of_defense(self, defense: str) -> list[_Key]:
        return [key for key in self.cells if key[1] == defense]


def summarize(rows: Sequence[Finding], context: Context | None = None) -> list[Cell]:
    """Return the cells in the order of the rows, with their verdicts and flags.

    Images whose update is exactly zero are left out of every rate; their share is stated. Intervals
    are by cluster: images of one update depend on each other, and so do the draws that attack it again. Whether
    something leaks is tested for all cells together, with Holm's correction.

    Args:
        rows: of one run.
        context: what else is known of the run.

    Returns:
        For each cell its numbers, ``leaks_by``, ``verdict``, ``flags``, ``by_patient`` and ``label_verdict``; and as
        ``union`` what the attacks on its defense show together, with the verdict on the defense: the same object in all
        cells of the defense.
    """
    context, found = context or Context(), _Rows.of(rows)
    cells = {key: _numbers(key, found) for key in found.cells}
    evidence = {key: evidence_of(own, found.random.get(key[0], [])) for key, own in found.cells.items()}
    unions = {defense: _union(defense, found) for defense in dict.fromkeys(key[1] for key in cells)}
    tests = {(key, way): p for key, own in evidence.items() for way, p in p_values(own).items()}
    several = {
        defense: own for defense, (union, own) in unions.items() if union["attacks"] > 1
    }  # of one, it is its cell
    tests |= {(defense, way): p for defense, own in several.items() for way, p in p_values(own).items()}
    leaking = holm(tests)
    for key, cell in cells.items():
        cell["leaks_by"] = [way for other, way in tests if other == key and (key, way) in leaking]
    reasons = {key: _reason(key, cells, evidence, context) for key in cells}
    for key, cell in cells.items():
        control = cells.get((key[0], UNDEFENDED, False))
        cell["control_asr"] = None if control is None else control["asr"]
        _judge(key, cell, evidence[key], reasons[key], found, context)
    _judge_patients(cells, reasons, found, context)
    _judge_labels(cells, reasons, found, context)
    for defense, (union, own) in unions.items():
        keys = found.of_defense(defense)
        union["leaks_by"] = [way for other, way in tests if other == defense and (defense, way) in leaking]
        _judge_union(union, own, [cells[key] for key in keys], [reasons[key] for key in keys], context)
        for key in keys:
            cells[key]["union"] = union
    return list(cells.values())


def _numbers(key: _Key, found: _Rows) -> Cell:
    attack, defense, knows = key
    own = found.cells[key]
    other = found.cells.get((attack, defense, False)) if knows else None
    masked = found.masked.get((attack, defense), [])
    numbers = numbers_of(own, found.random.get(attack, []), masked)
    return {"attack": attack, "defense": defense, **numbers, **false_security(other, own)}


def _union(defense: str, found: _Rows) -> tuple[Cell, Evidence]:
    keys = found.of_defense(defense)
    random = [found.random.get(attack, []) for attack in dict.fromkeys(attack for attack, *_ in keys)]
    return union_of([found.cells[key] for key in keys], random)


def _reason(key: _Key, cells: Mapping[_Key, Cell], evidence: Mapping[_Key, Evidence], context: Context) -> str | None:
    """Return the flag that says why a failure in a cell says nothing; a control that fails comes first."""
    attack, defense, knows = key
    bare = (attack, UNDEFENDED, False)
    control = untested(cells[key], cells.get(bare), evidence.get(bare), context.tolerance)
    return control if control == "control-failed" else context.reason(defense, knows) or control


def _judge(key: _Key, cell: Cell, evidence: Evidence, reason: str | None, found: _Rows, context: Context) -> None:
    """Add a cell's verdict and flags."""
    _, defense, knows = key
    cell["knows_defense"] = context.informed(defense, knows)
    bare = _masked_leaks(key, found)
    qualified = reason is None and not _broken(cell) and not bare
    limits = limits_of(evidence, context.tolerance)
    if cell["nonfinite"]:  # what ended at no number failed by itself, and is no evidence
        finite = [row for row in found.cells[key] if "nonfinite" not in row.flags]
        limits = list(dict.fromkeys([*limits, *limits_of(evidence_of(finite, []), context.tolerance)]))
    cell["verdict"] = verdict_of(cell, qualified, limits)
    cell["flags"] = doubts_of(found.cells[key], cell, reason)
    cell["flags"] += limits if qualified and not cell["leaks_by"] else []
    cell["flags"] += ["masked-vector"] if bare else []
    if defense in context.server_side:
        cell["flags"].append("server-side")
    if defense == RECORDED and context.mismatch:
        cell["flags"].append("record-mismatch")
        # A guess of other images than the truth is no failure of the attack.
        cell["verdict"] = LEAKS if cell["leaks_by"] else INCONCLUSIVE


def _broken(cell: Mapping[str, Any]) -> bool:
    return cell["images"] == 0 or cell["nonfinite"] > 0.5


def _is_qualified(cell: Mapping[str, Any], reason: str | None) -> bool:
    """Return whether the failure of a judged cell's attack says something of the defense."""
    return reason is None and not _broken(cell) and not _BARRING & set(cell["flags"])


def _masked_leaks(key: _Key, found: _Rows) -> bool:
    """Return whether one client's masked message says more than random numbers do."""
    attack, defense, _ = key
    masked = found.masked.get((attack, defense))
    if not masked:
        return False
    evidence = masked_evidence(found.cells[key], masked, found.random.get(attack, []))
    return any(p < ALPHA for p in p_values(evidence).values())


def _judge_patients(
    cells: Mapping[_Key, Cell], reasons: Mapping[_Key, str | None], found: _Rows, context: Context
) -> None:
    """Add each cell's rates by patient, with a verdict by the same rules."""
    told = {key: by_patient(found.cells[key], found.random.get(key[0], [])) for key in cells}
    tests = {(key, way): p for key, own in told.items() if own for way, p in p_values(own[1]).items()}
    leaking = holm(tests)
    for key, own in told.items():
        cells[key]["by_patient"] = None if own is None else own[0]
        if own is not None:
            own[0]["leaks_by"] = [way for other, way in tests if other == key and (key, way) in leaking]
            qualified = _is_qualified(cells[key], reasons[key])
            own[0]["verdict"] = verdict_of(own[0], qualified, limits_of(own[1], context.tolerance))


def _judge_labels(
    cells: Mapping[_Key, Cell], reasons: Mapping[_Key, str | None], found: _Rows, context: Context
) -> None:
    """Add whether each cell's labels leak, by the same rules; ``None`` where the attack infers none."""
    tallies = {key: labels_of(found.cells[key]) for key in cells}
    leaking = holm({key: tally.p_value for key, tally in tallies.items() if tally is not None})
    for key, tally in tallies.items():
        cell = cells[key]
        qualified = _is_qualified(cell, reasons[key])
        told = None if tally is None else _of_labels(tally, key in leaking, qualified, context.tolerance)
        cell["label_verdict"] = told


def _of_labels(tally: Tally, leaks: bool, qualified: bool, tolerance: float) -> str:
    if leaks:
        return LEAKS
    return NO_LEAK if qualified and tally.leaves(tolerance) and tally.excess < tolerance else INCONCLUSIVE


def _judge_union(
    union: Cell, evidence: Evidence, cells: Sequence[Cell], reasons: Sequence[str | None], context: Context
) -> None:
    """Add the verdict on a defense, from all its attacks: one that works must have been told, and all must fail."""
    qualified = [cell for cell, reason in zip(cells, reasons, strict=True) if _is_qualified(cell, reason)]
    if any("masked-vector" in cell["flags"] for cell in cells):  # whatever the other attacks make of the sum
        qualified = []
    # The guesses of many attacks explain much by chance: each attack by itself must be shown to keep the tolerance too.
    kept = [flag for cell in qualified for flag in cell["flags"] if flag in LIMITS]
    limits = list(dict.fromkeys([*limits_of(evidence, context.tolerance), *kept]))
    patients = any((cell["by_patient"] or {}).get("verdict") == LEAKS for cell in cells)
    if any(cell["verdict"] == LEAKS for cell in cells):
        union["leaks_by"] = list(dict.fromkeys([*union["leaks_by"], *(way for c in cells for way in c["leaks_by"])]))
    union["verdict"] = verdict_of(union, bool(qualified) and not patients, limits)
    union["tolerance"] = context.tolerance
    union["flags"] = limits if qualified and not union["leaks_by"] else []
    union["flags"] += ["patients-leak"] if patients and not union["leaks_by"] else []
    undecided = union["verdict"] == INCONCLUSIVE
    union["updates_needed"] = updates_to_decide(evidence, context.tolerance) if undecided else None
