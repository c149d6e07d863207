"""An audit's summary: one cell per attack, attacker's knowledge and defense, computed from rows alone."""

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
    out_of_budget,
    p_values,
    untested,
    updates_to_decide,
    verdict_of,
)

__all__ = ["LESS_NOISE", "MISMATCH", "Context", "by_defense", "summarize"]

MISMATCH = 1e-3
"""Relative difference above which a recorded update does not match its target images."""

LESS_NOISE = 0.85
"""Fraction of the distance between two draws of the stated noise below which a record has too little noise.

A record without any noise is 0.71 of that distance away from a draw.
"""

_Key = tuple[str, str, bool]
"""Spec of the attack, spec of the defense, and True if the attack knows the defense."""

_Place = TypeVar("_Place", bound=Hashable)


@dataclass(frozen=True)
class Context:
    """Facts about a run, besides its rows, that decide what a failed attack means.

    Attributes:
        tolerance: share of images; a rate must be shown to lie below it before it counts as no leak.
        server_side: specs of the defenses with a part that acts only at the server.
        server_only: specs of the defenses with no part that acts at the client: an attack has nothing to know.
        disclosure: the probe's findings by defense spec: ``changes`` (True if the defense changes updates),
            ``silent`` (True if it does so without disclosing it), ``problems`` (contradictions).
        record: for a recorded update, the stated ``defense``, the relative ``difference`` between the record and the
            update that the target images give under that defense, how far the latter varies with the client's own
            random draws (``spread``), and how near two draws come if they differ by the stated noise alone (``noise``).
        gaps: attack, defense and knowledge of the cells with images that could not be attacked.
    """

    tolerance: float = TOLERANCE
    server_side: Sequence[str] = ()
    server_only: Sequence[str] = ()
    disclosure: Mapping[str, Json] = field(default_factory=dict)
    record: Json | None = None
    gaps: frozenset[_Key] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> Context:
        """Return the context from a run's settings; a defense without a probe counts as undisclosed."""
        untold = {spec: {"changes": True, "silent": True} for spec in settings.experiment.get("defenses", ())}
        return cls(
            tolerance=settings.tolerance,
            server_side=settings.server_side,
            server_only=settings.server_only,
            disclosure={**untold, **settings.disclosure},
            record=settings.record,
            gaps=frozenset(
                (gap["attack"], gap["defense"], gap["knows"]) for gap in settings.gaps if not gap["control"]
            ),
        )

    def reason(self, defense: str, knows: bool) -> str | None:
        """Return the flag if the attack's failure says nothing because of what it knows; else ``None``."""
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
        """Return True if the attack knows the defense, False if not; ``None`` if there is nothing to know."""
        acting = (self.record or {}).get("defense", UNDEFENDED) if defense == RECORDED else defense
        bare = acting in (UNDEFENDED, *self.server_only) or self.disclosure.get(defense, {}).get("changes") is False
        return None if bare else knows

    @property
    def mismatch(self) -> bool:
        """True if an older run's record is too far from the expected update, or nearer than the stated noise allows."""
        if self.record is None or "checked" in self.record:  # a wrong record is stopped before the attacks
            return False
        difference = self.record["difference"]
        too_near = difference < LESS_NOISE * self.record.get("noise", 0.0)
        return too_near or not difference <= MISMATCH + self.record.get("spread", 0.0)  # NaN is far too


@dataclass(frozen=True)
class _Rows:
    """Rows grouped into cells and controls."""

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
    """Return the cells with their verdicts and flags, in the order of the rows.

    Images whose update is exactly zero are left out of every rate; their share is reported. Intervals are by cluster:
    images in one update depend on each other, and so do the draws of weights that attack it again. All cells are
    tested for leaks together, with Holm's correction.

    Args:
        rows: one run's rows.
        context: other facts about the run.
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
    """Return the verdict on each defense under all its attacks; on the undefended model if no defense was tested.

    If a defense was tested, the undefended model is a control: it has to leak for the test to mean anything.

    >>> found = {"NoDefense()": LEAKS, "QSGD()": INCONCLUSIVE}
    >>> cells = [Cell(attack="iDLG()", defense=name, union=Union(verdict=said)) for name, said in found.items()]
    >>> by_defense(cells), by_defense(cells[:1])
    ({'QSGD()': 'inconclusive'}, {'NoDefense()': 'leaks'})
    """
    tested = [cell for cell in cells if cell.defense != UNDEFENDED] or cells
    return {cell.defense: cell.union.verdict for cell in tested}


@dataclass(frozen=True)
class _Judged:
    """A cell's verdict, before the unions are judged.

    Attributes:
        verdict, flags: the cell's verdict and flags.
        qualified: True if its attack's failure is evidence about the defense.
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
    """Return the cells, and for each defense the ways in which its union leaks; all are tested together."""
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
    reason, masked = _reason(key, tested, found, context), _masked_leaks(key, found)
    sound = reason is None and not cell.broken and not masked
    limits = limits_of(cell.evidence, context.tolerance)
    if cell.numbers.nonfinite:  # a numerical failure is no evidence
        finite = [row for row in rows if "nonfinite" not in row.flags]
        limits = list(dict.fromkeys([*limits, *limits_of(evidence_of(finite, []), context.tolerance)]))
    mismatch = defense == RECORDED and context.mismatch  # missing the wrong target images is no failure
    flags = [
        *doubts_of(rows, cell, reason),
        *(limits if sound and not cell.leaks_by else []),
        *(["masked-vector"] if masked else []),
        *(["server-side"] if defense in context.server_side else []),
        *(["record-mismatch"] if mismatch else []),
    ]
    qualified = sound and not mismatch
    verdict = verdict_of(cell.leaks_by, qualified, limits)
    if verdict == NO_LEAK and context.informed(defense, key[2]) and (*key[:2], False) not in found.cells:
        flags.append("disclosure-unchecked")
    return _Judged(verdict, tuple(flags), qualified)


def _reason(key: _Key, tested: Mapping[_Key, Tested], found: _Rows, context: Context) -> str | None:
    """Return the flag that says why a failure in a cell says nothing, or ``None``; a failed control comes first."""
    attack, defense, knows = key
    control = untested(tested[key], tested.get((attack, UNDEFENDED, False)), context.tolerance)
    if control == "control-failed":
        return control
    if key in context.gaps:
        return "incomplete"
    ignored = "disclosure-unused" if context.informed(defense, knows) and _ignores_disclosure(key, found) else None
    return (
        context.reason(defense, knows)
        or ignored
        or control
        or ("out-of-budget" if out_of_budget(found.cells[key]) else None)
    )


def _ignores_disclosure(key: _Key, found: _Rows) -> bool:
    """Return True if an attack that was told what the defense discloses made the guesses that it made without.

    Both get the same random numbers, so that only what the attack was told can make a difference.
    """
    naive = found.cells.get((*key[:2], False), ())
    told, untold = ({_place(row): row.scores for row in rows} for rows in (found.cells[key], naive))
    return bool(untold) and told == untold


def _place(row: Finding) -> tuple[object, ...]:
    return row.image, row.draw, row.stack, row.victim, row.position


def _masked_leaks(key: _Key, found: _Rows) -> bool:
    """Return True if one client's masked message reveals more than random numbers do."""
    attack, defense, _ = key
    masked = found.masked.get((attack, defense))
    if not masked:
        return False
    evidence = masked_evidence(found.cells[key], masked, found.random.get(attack, []))
    return any(p < ALPHA for p in p_values(evidence).values())


def _patients(judged: Mapping[_Key, _Judged], found: _Rows, context: Context) -> dict[_Key, Patients | None]:
    """Judge each cell by patient: any of a patient's images exposes them. ``None`` if no patient has two images."""
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
    """Return the verdict on each cell's labels, by the same rules; ``None`` if the attack infers none."""
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
    """Return the union with the verdict on its defense.

    For *no leak found*, all attacks must fail, and at least one of them must be qualified: it works without the defense
    and knows it.
    """
    cells = [judged[key] for key in keys]
    qualified = [cell for cell in cells if cell.qualified]
    incomplete = any(gap[1] == key[1] for gap in context.gaps for key in keys[:1])
    if incomplete or any("masked-vector" in cell.flags for cell in cells):  # whatever other attacks get from the sum
        qualified = []
    # Many attacks' guesses explain much by chance, so each attack by itself must be shown to keep the tolerance too.
    kept = [flag for cell in qualified for flag in cell.flags if flag in LIMITS]
    limits = list(dict.fromkeys([*limits_of(evidence, context.tolerance), *kept]))
    exposed = any(one is not None and one.verdict == LEAKS for one in (patients[key] for key in keys))
    if any(cell.verdict == LEAKS for cell in cells):
        leaks_by = tuple(dict.fromkeys([*leaks_by, *(way for key in keys for way in tested[key].leaks_by)]))
    verdict = verdict_of(leaks_by, bool(qualified) and not exposed, limits)
    flags = [
        *(["incomplete"] if incomplete else []),
        *(limits if qualified else []),
        *(["patients-leak"] if exposed else []),
    ]
    return replace(
        union,
        leaks_by=leaks_by,
        verdict=verdict,
        tolerance=context.tolerance,
        flags=() if leaks_by else tuple(flags),
        updates_needed=updates_to_decide(evidence, context.tolerance) if verdict == INCONCLUSIVE else None,
    )
