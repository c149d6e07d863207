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
from medpfl.reporting.bounds import placed
from medpfl.reporting.facts import granted, sent_beside
from medpfl.reporting.figures.bounds import bound_section
from medpfl.reporting.figures.leak import leak_figure, similarity_figure
from medpfl.reporting.figures.panels import draw_panel, panels
from medpfl.reporting.flags import FLAGS, Flag
from medpfl.reporting.masks import mask_lines
from medpfl.reporting.page.answer import QUESTION, answered, bars
from medpfl.reporting.page.limits import not_shown
from medpfl.reporting.page.lines import lines_of, short_specs
from medpfl.reporting.page.pictures import Gallery, Proof, galleries, proof
from medpfl.reporting.page.rendering import rendered
from medpfl.reporting.phrases import Cells
from medpfl.reporting.tables import similarity_without_update, with_unions
from medpfl.reporting.verdict import verdict_sentences
from medpfl.reporting.words import attacker, label

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
    fixed = partial(
        rendered,
        "report",
        settings.to_dict(),
        question=QUESTION,
        answer=answered(summary, settings),
        sentences=verdict_sentences(summary, settings),
        bars=bars(summary),
        lines=lines_of(summary, rows),
        runs=False,
        names=short_specs(summary),
        compared=similarity_without_update(summary),
        masks=mask_lines(summary),
        figures=[Markup(figure) for figure in figures],
        bounds=bound_section(placed(summary)),
        volumes=len(settings.data.get("shape") or ()) == 4,
        grants=granted(settings.grants or ()),
        flags=_raised(summary),
        notes=settings.notes,
        assumed=settings.assumed,
        sent=sent_beside(settings.to_dict()),
        limits=not_shown(summary, settings),
        command=settings.command,
    )
    return lambda images: fixed(images=images)


def _raised(summary: Cells) -> list[tuple[str, Flag, list[str]]]:
    """Return each raised flag, its explanation, and the cells that raise it."""
    cells: dict[str, list[str]] = {}
    for cell in with_unions(summary):
        for flag in cell.flags:
            cells.setdefault(flag, []).append(f"{attacker(cell)}, {label(cell.defense)}")
    unknown = Flag("another version found a reason that this one does not know", "Ask where the rows come from.")
    return [(flag, FLAGS.get(flag, unknown), where) for flag, where in cells.items()]
