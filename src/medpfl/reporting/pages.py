"""The two pages of an audit: one that may be shared, and one with private images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jinja2
from markupsafe import Markup, escape

from medpfl.core.atomic_files import PRIVATE, write
from medpfl.core.experiments.settings import Json, Settings
from medpfl.judging.types import Cell
from medpfl.reporting.bounds import placed
from medpfl.reporting.facts import facts, granted, lead
from medpfl.reporting.figures.bounds import bound_section
from medpfl.reporting.figures.leak import leak_figure, similarity_figure
from medpfl.reporting.figures.panels import Panel, draw_panel, panels
from medpfl.reporting.figures.selection import Certified, certified
from medpfl.reporting.flags import FLAGS, Flag
from medpfl.reporting.masks import mask_lines
from medpfl.reporting.patients import patient_rows
from medpfl.reporting.phrases import Cells
from medpfl.reporting.tables import Entry, compared, entries, with_unions
from medpfl.reporting.verdict import MARKS, verdict_sentences, verdict_states
from medpfl.reporting.words import DASH, attacker, label

if TYPE_CHECKING:
    import numpy as np

    from medpfl.core.types import Finding

__all__ = ["environment", "rendered", "write_pages"]


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
    private, drawn = shown[0], panels(summary, rows, shown[1])
    (private / "pictures").mkdir(mode=0o700, exist_ok=True)
    written += [write(private / "pictures" / panel.file, draw_panel(panel), PRIVATE) for panel in drawn]
    return [*written, write(private / "report-with-images.html", page(drawn), PRIVATE)]


def _grants(settings: Settings, rows: Sequence[Finding]) -> tuple[str, ...]:
    """Return the stated grants or, if none are stated, the rows' grants, so that every report names them."""
    if settings.grants is not None:
        return settings.grants
    return tuple(dict.fromkeys(grant for row in rows for grant in row.grants))


def _page(settings: Settings, summary: Cells, rows: Sequence[Finding]) -> Callable[[Sequence[Panel] | None], bytes]:
    """Return a function that renders the page with some panels, or without."""
    figures = [leak_figure(summary), similarity_figure(summary, rows)] if summary else []
    fixed = partial(
        rendered,
        "report",
        settings.to_dict(),
        sentences=list(zip(verdict_sentences(summary, settings), verdict_states(summary), strict=True)),
        lead=lead(settings.to_dict()),
        cells=[_row(cell, rows) for cell in with_unions(summary)],
        compared=compared(summary),
        by_patient=patient_rows(summary),
        masks=mask_lines(summary),
        figures=[Markup(figure) for figure in figures],
        bounds=bound_section(placed(summary)),
        volumes=len(settings.data.get("shape") or ()) == 4,
        grants=granted(settings.grants or ()),
        flags=_raised(summary),
        notes=settings.notes,
        assumed=settings.assumed,
        command=settings.command,
        marks=MARKS,
    )
    return lambda panels: fixed(panels=panels)


class _Row(NamedTuple):
    """A line in the page's table."""

    attack: str
    defense: str
    knows: str
    verdict: str
    flags: tuple[str, ...]
    numbers: list[Entry]
    certified: Certified


def _row(cell: Cell, rows: Sequence[Finding]) -> _Row:
    knows = DASH if cell.knows_defense is None else "yes" if cell.knows_defense else "no"
    return _Row(cell.attack, cell.defense, knows, cell.verdict, cell.flags, entries(cell), certified(cell, rows))


def _raised(summary: Cells) -> list[tuple[str, Flag, list[str]]]:
    """Return each raised flag, its explanation, and the cells that raise it."""
    cells: dict[str, list[str]] = {}
    for cell in with_unions(summary):
        for flag in cell.flags:
            cells.setdefault(flag, []).append(f"{attacker(cell)}, {label(cell.defense)}")
    unknown = Flag("another version found a reason that this one does not know", "Ask where the rows come from.")
    return [(flag, FLAGS.get(flag, unknown), where) for flag, where in cells.items()]


def rendered(name: str, settings: Json, **values: object) -> bytes:
    """Render a page from its template, with the style, facts and version that all pages share."""
    style = Markup(files("medpfl.reporting").joinpath("report.css").read_text("utf-8"))
    version = (settings.get("versions") or {}).get("medpfl", "")
    template = environment().get_template(f"{name}.html.jinja")
    return template.render(css=style, facts=facts(settings), version=version, **values).encode()


@cache
def environment() -> jinja2.Environment:
    """Return the template environment, with filters for specs and sentences."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medpfl.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(spec=_spec, prose=_prose, slug=_slug)
    return environment


def _spec(spec: str) -> Markup:
    """Format a spec as code that may break after a bracket, comma, bar or equals sign."""
    text = re.sub(r"([(,|=])", r"\1<wbr>", str(escape(label(spec))))
    return Markup(f"<code>{text}</code>" if label(spec) == spec.replace("()", "") else text)


def _prose(text: str) -> Markup:
    """Keep numbers and intervals on one line; let specs break after a bracket or an equals sign."""
    kept = str(escape(text)).replace(" %", "\u00a0%")
    kept = re.sub(rf"(?<=\d){DASH}(?=\d)", f"\u2060{DASH}\u2060", kept)
    return Markup(re.sub(r"(?<=\w[(=])(?=[^\s\u2026])", "<wbr>", kept))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z]+", "-", text.lower()).strip("-")
