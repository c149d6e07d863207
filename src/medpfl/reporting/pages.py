"""The two pages of an audit: one to be shared, and one that holds private images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from medpfl.core.files import PRIVATE, write
from medpfl.core.verdicts import INCONCLUSIVE
from medpfl.reporting.bound_figure import bound_section
from medpfl.reporting.bounds import placed
from medpfl.reporting.drawing import draw_panel
from medpfl.reporting.facts import facts, granted, lead
from medpfl.reporting.figures import leak_figure, similarity_figure
from medpfl.reporting.flags import FLAGS, Flag
from medpfl.reporting.masks import mask_lines
from medpfl.reporting.panels import Panel, panels
from medpfl.reporting.patients import patient_rows
from medpfl.reporting.tables import entries, with_unions
from medpfl.reporting.verdict import MARKS, verdict_sentences, verdict_states
from medpfl.reporting.words import DASH, attacker, label

if TYPE_CHECKING:
    import numpy as np

    from medpfl.core.types import Finding

__all__ = ["environment", "rendered", "write_pages"]


def write_pages(
    out: Path,
    settings: Mapping[str, Any],
    summary: Sequence[Mapping[str, Any]],
    rows: Sequence[Finding],
    picture: Callable[[Finding], tuple[np.ndarray, np.ndarray]] | None,
) -> list[Path]:
    """Writes ``report.html``, and with pictures ``report-with-images.html`` and ``pictures/``.

    Args:
        out: the folder.
        settings: of the run; what is missing is not shown.
        summary: one mapping for each attack and defense, in order.
        rows: all findings, the controls too.
        picture: truth and guess of a row as uint8 (H, W) or (H, W, 3); ``None`` writes no private image.

    Returns:
        The files written; all but the first are readable by their owner alone.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = {**settings, "grants": _grants(settings, rows)}
    written = [write(out / "report.html", _page(settings, summary, rows))]
    if picture is None:
        return written
    shown = panels(summary, rows, picture)
    (out / "pictures").mkdir(mode=0o700, exist_ok=True)
    written += [write(out / "pictures" / panel.file, draw_panel(panel), PRIVATE) for panel in shown]
    page = _page(settings, summary, rows, shown)
    return [*written, write(out / "report-with-images.html", page, PRIVATE)]


def _grants(settings: Mapping[str, Any], rows: Sequence[Finding]) -> list[str]:
    """As stated, or else as the rows have them: a report never leaves them out."""
    if settings.get("grants") is not None:
        return list(settings["grants"])
    return list(dict.fromkeys(grant for row in rows for grant in row.grants))


def _page(
    settings: Mapping[str, Any],
    summary: Sequence[Mapping[str, Any]],
    rows: Sequence[Finding],
    shown: Sequence[Panel] | None = None,
) -> bytes:
    figures = [leak_figure(summary), similarity_figure(summary, rows)] if summary else []
    return rendered(
        "report",
        settings,
        sentences=list(zip(verdict_sentences(summary, settings), verdict_states(summary), strict=True)),
        lead=lead(settings),
        cells=[_row(cell) for cell in with_unions(summary)],
        by_patient=patient_rows(summary),
        masks=mask_lines(summary),
        figures=[Markup(figure) for figure in figures],
        bounds=bound_section(placed(summary)),
        panels=shown,
        volumes=len((settings.get("data") or {}).get("shape") or ()) == 4,
        grants=granted(settings),
        flags=_raised(summary),
        notes=settings.get("notes") or (),
        assumed=settings.get("assumed") or (),
        command=settings.get("command"),
        marks=MARKS,
    )


def _row(cell: Mapping[str, Any]) -> dict[str, Any]:
    known = {"verdict": cell.get("verdict") or INCONCLUSIVE, "flags": cell.get("flags") or ()}
    knows = DASH if cell.get("knows_defense") is None else "yes" if cell["knows_defense"] else "no"
    return {
        "attack": cell["attack"], "defense": cell["defense"], "knows": knows, "numbers": entries(cell), **known
    }  # fmt: skip


def _raised(summary: Sequence[Mapping[str, Any]]) -> list[tuple[str, Flag, list[str]]]:
    """Each raised flag, its explanation, and the cells that raise it."""
    cells: dict[str, list[str]] = {}
    for cell in with_unions(summary):
        for flag in cell.get("flags") or ():
            cells.setdefault(flag, []).append(f"{attacker(cell)}, {label(cell['defense'])}")
    unknown = Flag("of a reason that this version does not know", "Ask where the rows come from.")
    return [(flag, FLAGS.get(flag, unknown), where) for flag, where in cells.items()]


def rendered(name: str, settings: Mapping[str, Any], **values: Any) -> bytes:
    """A page from its template, with the style, the facts and the version that all pages have."""
    style = Markup(files("medpfl.reporting").joinpath("report.css").read_text("utf-8"))
    version = (settings.get("versions") or {}).get("medpfl", "")
    template = environment().get_template(f"{name}.html.jinja")
    return template.render(css=style, facts=facts(settings), version=version, **values).encode()


@cache
def environment() -> jinja2.Environment:
    """The templates, with what they need to print specs and sentences."""
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
    """A spec in type of its own, that may break after a bracket, a comma or a bar."""
    text = re.sub(r"([(,|=])", r"\1<wbr>", str(escape(label(spec))))
    return Markup(f"<code>{text}</code>" if label(spec) == spec.replace("()", "") else text)


def _prose(text: str) -> Markup:
    """A number and an interval stay on one line; a spec may break behind a bracket or an equals sign."""
    kept = str(escape(text)).replace(" %", "\u00a0%")
    kept = re.sub(rf"(?<=\d){DASH}(?=\d)", f"\u2060{DASH}\u2060", kept)
    return Markup(re.sub(r"(?<=\w[(=])(?=[^\s\u2026])", "<wbr>", kept))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z]+", "-", text.lower()).strip("-")
