"""The lines of a page's table: six columns, and everything else behind details."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from medpfl.judging.types import Cell, Rate
from medpfl.reporting.figures.selection import Certified, certified, finders, unread
from medpfl.reporting.patients import PatientRow, patient_rows
from medpfl.reporting.phrases import Cells, trials
from medpfl.reporting.tables import Entry, Whole, entries, with_unions
from medpfl.reporting.words import DASH, attacker, brief, label

if TYPE_CHECKING:
    from medpfl.core.types import Finding

__all__ = ["Line", "lines_of", "short_specs"]


class Line(NamedTuple):
    """A line in the page's table: six columns, and everything else behind its details.

    Attributes:
        attack, defense: specs.
        names: the same, shortened if they are long.
        attacker: the attack as elsewhere on the page, with its knowledge where two lines would look alike.
        knows: ``yes``, ``no``, or a dash.
        verdict, flags: as in the cell.
        shown: reconstructed and re-identified, with their intervals.
        more: all numbers that are known, with all small print.
        order: values by which the table sorts.
        certified: certificates.
        found_by: which attacks of an ensemble found its guesses; ``""`` if it is none.
        unread: of how many updates the attack read nothing, and why; ``""`` if it states no reason.
        patient: the same by patient, if patients have several images.
        whole: True if the line stands for all attacks on a defense.
        run: the run's name, on a page of several.
    """

    attack: str
    defense: str
    names: tuple[str, str]
    attacker: str
    knows: str
    verdict: str
    flags: tuple[str, ...]
    shown: tuple[Entry, ...]
    more: tuple[Entry, ...]
    order: tuple[float, float]
    certified: Certified
    found_by: str
    unread: str
    patient: PatientRow | None
    whole: bool
    run: str = ""


_LONG = 40
"""Number of characters from which a spec is shortened, outside its details."""


def lines_of(summary: Cells, rows: Sequence[Finding]) -> list[Line]:
    """Return a line for each cell, and one for all attacks on a defense together."""
    patients = {(one.attack, one.defense): one for one in patient_rows(summary)}
    names = short_specs(summary)
    return [_line(cell, rows, patients, names) for cell in with_unions(summary)]


def short_specs(summary: Cells) -> dict[str, str]:
    """Return short names for the specs that are too long to stand in a table in full."""
    specs = dict.fromkeys(spec for cell in with_unions(summary) for spec in (cell.attack, cell.defense))
    return {spec: short for spec, short in brief(specs).items() if len(label(spec)) > _LONG}


def _line(
    cell: Cell, rows: Sequence[Finding], patients: dict[tuple[str, str], PatientRow], short: dict[str, str]
) -> Line:
    numbers = {entry.column: entry for entry in entries(cell)}
    named = attacker(cell)
    return Line(
        attack=cell.attack,
        defense=cell.defense,
        names=(short.get(cell.attack, cell.attack), short.get(cell.defense, cell.defense)),
        attacker=named,
        knows=DASH if cell.knows_defense is None else "yes" if cell.knows_defense else "no",
        verdict=cell.verdict,
        flags=cell.flags,
        shown=tuple(
            replace(numbers[column], notes=(*numbers[column].notes[:1], *few)) for column, few in _few(cell).items()
        ),
        more=tuple(entry for entry in numbers.values() if entry.value != DASH),
        order=(_or_least(cell.asr), _or_least(cell.identified)),
        certified=certified(cell, rows),
        found_by=finders(cell, rows),
        unread=unread(cell, rows),
        patient=None if isinstance(cell, Whole) else patients.get((named, cell.defense)),
        whole=isinstance(cell, Whole),
    )


def _few(cell: Cell) -> dict[str, tuple[str, ...]]:
    """Return the columns of rates, the first with a note if its interval counts fewer updates than images."""
    few = trials(cell.images, cell.clusters, cell.union.per_update)
    return {"Reconstructed (ASR)": (few,) if few else (), "Re-identified": ()}


def _or_least(rate: Rate) -> float:
    return -1.0 if rate.value is None else rate.value
