"""One entry for each attack, told of the defense or not, and each defense, computed from rows alone."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from medpfl.core.experiments.settings import Json, Settings
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
from medpfl.judging.patients import by_patient
from medpfl.judging.types import Cell, Numbers, Patients, Union
from medpfl.judging.verdict import (
    LIMITS,
    Tested,
    doubts_of,
    limits_of,
    p_values,
    untested,
    updates_to_decide,
    verdict_of,
)

__all__ = ["Context", "by_defense", "summarize"]

_MISMATCH = 1e-3
"""Relative difference from which a recorded update is not what its truth gives."""

_LESS_NOISE = 0.85
"""Of the distance of two draws of the stated noise; without any noise, a record is at 0.71 of it from a draw."""

_Key = tuple[str, str, bool]
"""An attack, a defense, and whether the attack is told of it."""

_Place = TypeVar("_Place", bound=Hashable)


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
    disclosure: Mapping[str, Json] = field(default_factory=dict)
    record: Json | None = None

    @classmethod
    def of(cls, settings: Settings) -> Context:
        """Return the context that a run's settings hold; a defense that was not probed is taken for undisclosed."""
        untold = {spec: {"changes": True, "silent": True} for spec in settings.experiment.get("defenses", ())}
        return cls(
            tolerance=settings.tolerance,
            server_side=settings.server_side,
            server_only=settings.server_only,
            disclosure={**untold, **settings.disclosure},
            record=settings.record,
        )

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
    """
    context, found = context or Context(), _Rows.of(rows)
    unions = {defense: _union(defense, found) for defense in dict.fromkeys(key[1] for key in found.cells)}
    tested, leaking = _tested(found, unions)
    judged = {key: _judged(key, tested, found, context) for key in tested}
    patients, labels = _patients(judged, found, context), _labels(judged, found, context)
    whole = {
        defense: _judged_union(
            union, own, leaking[defense], found.of_defense(defense), tested, judged, patients, context
        )
        for defense, (union, own) in unions.items()
    }
    bare = {key: tested.get((key[0], UNDEFENDED, False)) for key in tested}
    return [
        Cell(
            **vars(tested[key].numbers),
            leaks_by=tested[key].leaks_by,
            control_asr=None if (control := bare[key]) is None else control.numbers.asr.value,
            knows_defense=key[2] if (*key[:2], not key[2]) in tested else context.informed(key[1], key[2]),
            verdict=own.verdict,
            flags=own.flags,
            by_patient=patients[key],
            label_verdict=labels[key],
            union=whole[key[1]],
        )
        for key, own in judged.items()
    ]


def by_defense(cells: Sequence[Cell]) -> dict[str, str]:
    """Return the verdict on each defense, all attacks on it together; on no defense, where none was tested.

    Beside a defense, the undefended model is a control, which has to leak for the test to mean anything.

    >>> found = {"NoDefense()": LEAKS, "QSGD()": INCONCLUSIVE}
    >>> cells = [Cell(attack="iDLG()", defense=name, union=Union(verdict=said)) for name, said in found.items()]
    >>> by_defense(cells), by_defense(cells[:1])
    ({'QSGD()': 'inconclusive'}, {'NoDefense()': 'leaks'})
    """
    tested = [cell for cell in cells if cell.defense != UNDEFENDED] or cells
    return {cell.defense: cell.union.verdict for cell in tested}


@dataclass(frozen=True)
class _Judged:
    """Verdict on a cell, before the unions are judged.

    Attributes:
        verdict, flags: of the cell.
        qualified: whether a failure of its attack says something.
    """

    verdict: str
    flags: tuple[str, ...]
    qualified: bool


def _union(defense: str, found: _Rows) -> tuple[Union, Evidence]:
    keys = found.of_defense(defense)
    random = [found.random.get(attack, []) for attack in dict.fromkeys(attack for attack, *_ in keys)]
    return union_of([found.cells[key] for key in keys], random)


def _tested(
    found: _Rows, unions: Mapping[str, tuple[Union, Evidence]]
) -> tuple[dict[_Key, Tested], dict[str, tuple[str, ...]]]:
    """Return the cells, and by defense the ways in which its attacks together leak; all are tested together."""
    evidence = {key: evidence_of(own, found.random.get(key[0], [])) for key, own in found.cells.items()}
    several = {defense: own for defense, (union, own) in unions.items() if union.attacks > 1}  # of one, it is its cell
    tests: dict[tuple[_Key | str, str], float] = {
        (place, way): p for place, own in [*evidence.items(), *several.items()] for way, p in p_values(own).items()
    }
    leaking = holm(tests)

    cells = {key: Tested(_numbers(key, found), own, _ways(key, tests, leaking)) for key, own in evidence.items()}
    return cells, {defense: _ways(defense, tests, leaking) for defense in unions}


def _ways(
    place: _Place, tests: Iterable[tuple[_Place, str]], leaking: Container[tuple[_Place, str]]
) -> tuple[str, ...]:
    """Return the ways in which a cell, a defense or a cell's patients leak, in the order of the tests."""
    return tuple(way for other, way in tests if other == place and (other, way) in leaking)


def _numbers(key: _Key, found: _Rows) -> Numbers:
    attack, defense, knows = key
    naive = found.cells.get((attack, defense, False)) if knows else None
    masked = found.masked.get((attack, defense), [])
    return numbers_of((attack, defense), found.cells[key], found.random.get(attack, []), masked, naive)


def _judged(key: _Key, tested: Mapping[_Key, Tested], found: _Rows, context: Context) -> _Judged:
    """Return the verdict on a cell."""
    cell, rows, defense = tested[key], found.cells[key], key[1]
    reason, masked = _reason(key, tested, context), _masked_leaks(key, found)
    sound = reason is None and not cell.broken and not masked
    limits = limits_of(cell.evidence, context.tolerance)
    if cell.numbers.nonfinite:  # what ended at no number failed by itself, and is no evidence
        finite = [row for row in rows if "nonfinite" not in row.flags]
        limits = list(dict.fromkeys([*limits, *limits_of(evidence_of(finite, []), context.tolerance)]))
    mismatch = defense == RECORDED and context.mismatch  # a guess of other images than the truth is no failure
    flags = [
        *doubts_of(rows, cell, reason),
        *(limits if sound and not cell.leaks_by else []),
        *(["masked-vector"] if masked else []),
        *(["server-side"] if defense in context.server_side else []),
        *(["record-mismatch"] if mismatch else []),
    ]
    qualified = sound and not mismatch
    return _Judged(verdict_of(cell.leaks_by, qualified, limits), tuple(flags), qualified)


def _reason(key: _Key, tested: Mapping[_Key, Tested], context: Context) -> str | None:
    """Return the flag that says why a failure in a cell says nothing; a control that fails comes first."""
    attack, defense, knows = key
    control = untested(tested[key], tested.get((attack, UNDEFENDED, False)), context.tolerance)
    return control if control == "control-failed" else context.reason(defense, knows) or control


def _masked_leaks(key: _Key, found: _Rows) -> bool:
    """Return whether one client's masked message says more than random numbers do."""
    attack, defense, _ = key
    masked = found.masked.get((attack, defense))
    if not masked:
        return False
    evidence = masked_evidence(found.cells[key], masked, found.random.get(attack, []))
    return any(p < ALPHA for p in p_values(evidence).values())


def _patients(judged: Mapping[_Key, _Judged], found: _Rows, context: Context) -> dict[_Key, Patients | None]:
    """Return each cell's rates by patient, with a verdict by the same rules."""
    told = {key: by_patient(found.cells[key], found.random.get(key[0], [])) for key in judged}
    tests = {(key, way): p for key, own in told.items() if own for way, p in p_values(own[1]).items()}
    leaking = holm(tests)
    patients: dict[_Key, Patients | None] = dict.fromkeys(told)
    for key, own in told.items():
        if own is not None:
            ways = _ways(key, tests, leaking)
            verdict = verdict_of(ways, judged[key].qualified, limits_of(own[1], context.tolerance))
            patients[key] = replace(own[0], leaks_by=ways, verdict=verdict)
    return patients


def _labels(judged: Mapping[_Key, _Judged], found: _Rows, context: Context) -> dict[_Key, str | None]:
    """Return whether each cell's labels leak, by the same rules; ``None`` where the attack infers none."""
    tallies = {key: labels_of(found.cells[key]) for key in judged}
    leaking = holm({key: tally.p_value for key, tally in tallies.items() if tally is not None})
    return {
        key: None if tally is None else _of_labels(tally, key in leaking, judged[key].qualified, context.tolerance)
        for key, tally in tallies.items()
    }


def _of_labels(tally: Tally, leaks: bool, qualified: bool, tolerance: float) -> str:
    if leaks:
        return LEAKS
    return NO_LEAK if qualified and tally.leaves(tolerance) and tally.excess < tolerance else INCONCLUSIVE


def _judged_union(
    union: Union,
    evidence: Evidence,
    leaks_by: tuple[str, ...],
    keys: Sequence[_Key],
    tested: Mapping[_Key, Tested],
    judged: Mapping[_Key, _Judged],
    patients: Mapping[_Key, Patients | None],
    context: Context,
) -> Union:
    """Return the union with the verdict on its defense: an attack that works must have been told, and all must fail."""
    cells = [judged[key] for key in keys]
    qualified = [cell for cell in cells if cell.qualified]
    if any("masked-vector" in cell.flags for cell in cells):  # whatever the other attacks make of the sum
        qualified = []
    # The guesses of many attacks explain much by chance: each attack by itself must be shown to keep the tolerance too.
    kept = [flag for cell in qualified for flag in cell.flags if flag in LIMITS]
    limits = list(dict.fromkeys([*limits_of(evidence, context.tolerance), *kept]))
    exposed = any(one is not None and one.verdict == LEAKS for one in (patients[key] for key in keys))
    if any(cell.verdict == LEAKS for cell in cells):
        leaks_by = tuple(dict.fromkeys([*leaks_by, *(way for key in keys for way in tested[key].leaks_by)]))
    verdict = verdict_of(leaks_by, bool(qualified) and not exposed, limits)
    flags = [*(limits if qualified else []), *(["patients-leak"] if exposed else [])]
    return replace(
        union,
        leaks_by=leaks_by,
        verdict=verdict,
        tolerance=context.tolerance,
        flags=() if leaks_by else tuple(flags),
        updates_needed=updates_to_decide(evidence, context.tolerance) if verdict == INCONCLUSIVE else None,
    )
