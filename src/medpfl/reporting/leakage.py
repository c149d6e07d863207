"""Leakage over the rounds of a training: a figure, a table and a page, from the cells of each round's audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpfl.core.files import write
from medpfl.reporting.curves import canvas, legend
from medpfl.reporting.svg import COLORS, inline
from medpfl.reporting.words import label, number, percent, percents, shorten

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["leakage_figure", "leakage_table", "sentence", "write_leakage_page"]

Cells = Sequence[Mapping[str, Any]]
COLUMNS = ("Round", "Attack", "Defense", "Read back", "SSIM", "Identified", "Verdict")
_INKS = ("leak", "safe", "doubt", "muted", "ink")
_DASHES = ("-", "--", "-.", ":")


def sentence(summary: Cells) -> str:
    """In which round the strongest attack read most."""
    best = max(summary, key=lambda cell: (cell["asr"] or 0.0, cell["identified"] or 0.0, cell["ssim"] or 0.0))
    rounds = sorted({cell["round"] for cell in summary})
    return (
        f"Of the models of rounds {', '.join(map(str, rounds))}, that of round {best['round']} leaks most: "
        f"{percent(best['asr'])} of {best['images']} images were read back (95 % interval "
        f"{percents(best['asr_low'], best['asr_high'])}), {percent(best['identified'])} were identified, by "
        f"{label(best['attack'])} with {label(best['defense'])}."
    )


def leakage_figure(summary: Cells, score: str = "ssim") -> str:
    """A score by round, a line for each attack under each defense, with its interval."""
    figure, axes = canvas()
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in summary:
        lines.setdefault((cell["attack"], cell["defense"]), []).append(cell)
    for place, ((attack, defense), cells) in enumerate(lines.items()):
        color, style = COLORS[_INKS[place % len(_INKS)]], _DASHES[place // len(_INKS) % len(_DASHES)]
        known = sorted((c for c in cells if c[score] is not None), key=lambda cell: cell["round"])
        rounds: list[Any] = [cell["round"] for cell in known]
        values: list[Any] = [cell[score] for cell in known]
        ends: list[Any] = [[c[score] if c[f"{score}_{e}"] is None else c[f"{score}_{e}"] for c in known] for e in _ENDS]
        axes.fill_between(rounds, *ends, color=color, alpha=0.12, linewidth=0)
        text = shorten(f"{label(attack)}, {label(defense)}", 44)
        axes.plot(rounds, values, style, marker="o", markersize=4, color=color, linewidth=1.6, label=text)
    legend(axes, columns=1)
    spoken = "; ".join(f"round {c['round']}: {number(c[score])}" for c in summary)
    return inline(figure, score, f"{_NAMES[score]} by round: {spoken}")


_ENDS = ("low", "high")
_NAMES = {"ssim": "mean SSIM", "asr": "share of images read back"}


def _values(cell: Mapping[str, Any]) -> list[tuple[str, str]]:
    rates = [(percent(cell[k]), percents(cell[f"{k}_low"], cell[f"{k}_high"])) for k in ("asr", "identified")]
    names = [(str(cell["round"]), ""), (label(cell["attack"]), ""), (label(cell["defense"]), "")]
    return [*names, rates[0], (number(cell["ssim"]), ""), rates[1], (cell["verdict"], " ".join(cell["flags"]))]


def leakage_table(summary: Cells) -> Table:
    """The cells of all rounds for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in COLUMNS:
        table.add_column(name)
    for cell in summary:
        table.add_row(*(Text(value) for value, _ in _values(cell)))
    return table


def write_leakage_page(out: Path, settings: Mapping[str, Any], summary: Cells) -> Path:
    """Writes ``leakage.html``, which holds no image and may be shared."""
    from markupsafe import Markup

    from medpfl.reporting.facts import facts
    from medpfl.reporting.pages import environment

    text = (
        environment()
        .get_template("leakage.html.jinja")
        .render(
            css=Markup(files("medpfl.reporting").joinpath("report.css").read_text("utf-8")),
            sentence=sentence(summary),
            figures=[(name, Markup(leakage_figure(summary, score))) for score, name in _NAMES.items()],
            columns=COLUMNS,
            rows=[_values(cell) for cell in summary],
            facts=facts(settings),
            version=(settings.get("versions") or {}).get("medpfl", ""),
        )
    )
    return write(out / "leakage.html", text.encode())
