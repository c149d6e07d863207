"""The two pages of an audit: one that may be shared, and one with private images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from medpfl.core.atomic_files import PRIVATE, write
from medpfl.core.experiments.settings import Settings
from medpfl.judging.types import Cell
from medpfl.reporting.bounds import placed
from medpfl.reporting.facts import granted
from medpfl.reporting.figures.bounds import bound_section
from medpfl.reporting.figures.leak import leak_figure, similarity_figure
from medpfl.reporting.figures.panels import draw_panel, panels
from medpfl.reporting.figures.selection import Certified, certified
from medpfl.reporting.flags import FLAGS, Flag
from medpfl.reporting.masks import mask_lines
from medpfl.reporting.page.answer import QUESTION, answered, bars
from medpfl.reporting.page.pictures import Gallery, Proof, galleries, proof
from medpfl.reporting.page.rendering import rendered
from medpfl.reporting.patients import PatientRow, patient_rows
from medpfl.reporting.phrases import Cells
from medpfl.reporting.tables import Entry, Whole, compared, entries, with_unions
from medpfl.reporting.verdict import verdict_sentences
from medpfl.reporting.words import DASH, attacker, brief, label

if TYPE_CHECKING:
    import numpy as np

    from medpfl.core.types import Finding

__all__ = ["write_pages"]


class Shown(NamedTuple):
    """Everything on the private page that shows an image."""

    proof: Proof | None
    galleries: Sequence[Gallery]


def write_pages(
    share: Path,
    settings: Settings,
    summary: Cells,
    rows: Sequence[Finding],
    shown: tuple[Path, Callable[[Finding], tuple[np.ndarray, np.ndarray]]] | None,
) -> list[Path]:
    """Write ``report.html``; optionally also ``report-with-images.html`` and ``pictures/`` in a private folder.

    Args:
        share: an existing folder for the page without images.
        settings: the run's settings; missing ones are not shown.
        summary: the cells, in order.
        rows: all findings, including the controls.
        shown: an existing folder for everything that shows an image, and a function that returns a row's target image
            and guess as uint8 arrays (H, W) or (H, W, 3); ``None`` writes no private image.

    Returns:
        The files written. Only their owner can read them, except the first.
    """
    page = _page(replace(settings, grants=_grants(settings, rows)), summary, rows)
    written = [write(share / "report.html", page(None))]
    if shown is None:
        return written
    private, picture = shown
    drawn = panels(summary, rows, picture)
    (private / "pictures").mkdir(mode=0o700, exist_ok=True)
    written += [write(private / "pictures" / panel.file, draw_panel(panel), PRIVATE) for panel in drawn]
    images = Shown(proof(summary, rows, picture), galleries(summary, rows, picture))
    return [*written, write(private / "report-with-images.html", page(images), PRIVATE)]


def _grants(settings: Settings, rows: Sequence[Finding]) -> tuple[str, ...]:
    """Return the stated grants or, if none are stated, the rows' grants, so that every report names them."""
    if settings.grants is not None:
        return settings.grants
    return tuple(dict.fromkeys(grant for row in rows for grant in row.grants))


def _page(settings: Settings, summary: Cells, rows: Sequence[Finding]) -> Callable[[Shown | None], bytes]:
    """Return a function that renders the page with images, or without."""
    figures = [leak_figure(summary), similarity_figure(summary, rows)] if summary else []
    by_patient = {(one.attack, one.defense): one for one in patient_rows(summary)}
    names = brief(dict.fromkeys(spec for cell in with_unions(summary) for spec in (cell.attack, cell.defense)))
    fixed = partial(
        rendered,
        "report",
        settings.to_dict(),
        question=QUESTION,
        answer=answered(summary, settings),
        sentences=verdict_sentences(summary, settings),
        bars=bars(summary),
        lines=[_line(cell, rows, by_patient, names) for cell in with_unions(summary)],
        names={spec: short for spec, short in names.items() if len(label(spec)) > _LONG},
        compared=compared(summary),
        masks=mask_lines(summary),
        figures=[Markup(figure) for figure in figures],
        bounds=bound_section(placed(summary)),
        volumes=len(settings.data.get("shape") or ()) == 4,
        grants=granted(settings.grants or ()),
        flags=_raised(summary),
        notes=settings.notes,
        assumed=settings.assumed,
        command=settings.command,
    )
    return lambda images: fixed(images=images)


class _Line(NamedTuple):
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
        patient: the same by patient, if patients have several images.
        whole: True if the line stands for all attacks on a defense.
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
    patient: PatientRow | None
    whole: bool


_LONG = 40
"""Number of characters from which a spec is shortened, outside its details."""

_COLUMNS = ("Reconstructed (ASR)", "Re-identified")


def _line(
    cell: Cell, rows: Sequence[Finding], patients: dict[tuple[str, str], PatientRow], short: dict[str, str]
) -> _Line:
    numbers = {entry.column: entry for entry in entries(cell)}
    named = attacker(cell)
    return _Line(
        attack=cell.attack,
        defense=cell.defense,
        names=tuple(short[spec] if len(label(spec)) > _LONG else spec for spec in (cell.attack, cell.defense)),
        attacker=named,
        knows=DASH if cell.knows_defense is None else "yes" if cell.knows_defense else "no",
        verdict=cell.verdict,
        flags=cell.flags,
        shown=tuple(replace(numbers[column], notes=numbers[column].notes[:1]) for column in _COLUMNS),
        more=tuple(entry for entry in numbers.values() if entry.value != DASH),
        order=tuple(-1.0 if rate.value is None else rate.value for rate in (cell.asr, cell.identified)),
        certified=certified(cell, rows),
        patient=None if isinstance(cell, Whole) else patients.get((named, cell.defense)),
        whole=isinstance(cell, Whole),
    )


def _raised(summary: Cells) -> list[tuple[str, Flag, list[str]]]:
    """Return each raised flag, its explanation, and the cells that raise it."""
    cells: dict[str, list[str]] = {}
    for cell in with_unions(summary):
        for flag in cell.flags:
            cells.setdefault(flag, []).append(f"{attacker(cell)}, {label(cell.defense)}")
    unknown = Flag("another version found a reason that this one does not know", "Ask where the rows come from.")
    return [(flag, FLAGS.get(flag, unknown), where) for flag, where in cells.items()]
