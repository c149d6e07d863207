"""Charts of stored benchmark rows, as SVG files: ``python -m website.charts`` writes the rows and the charts.

The rows in ``benchmarks/results`` are the tables of the pages that show them, cell by cell; a test compares the two.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import log10
from pathlib import Path

__all__ = ["TABLES", "Mark", "charts", "main", "stored", "table_in"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "pictures"
TABLES = {
    "contested": ("benchmarks/results/contested.md", "## Contested ground"),
    "frontier": ("docs/defenses.md", "### One frontier, measured"),
    "noise": ("docs/reproduction.md", "## Noise"),
    "recipes": ("benchmarks/results/recipes.md", "## The recipes"),
    "verdicts": ("benchmarks/results/verdicts.md", "# Verdicts where the truth is known"),
}
"""For each file of rows: the page with the table, and the heading above it."""

COLORS = ("#b3261e", "#1f6f8b", "#8a6d00")
_INK, _MUTED, _LINE = "#16202c", "#5a6775", "#d7dce1"
_STEP, _LEFT, _WIDTH, _PLOT = 22, 250, 820, 520


def table_in(page: str, heading: str) -> str:
    """Return the first table below a heading as CSV.

    Raises:
        ValueError: the page has no such heading.
    """
    lines = (ROOT / page).read_text().split("\n")
    rows: list[list[str]] = []
    for line in lines[lines.index(heading) :]:
        if line.startswith("|"):
            rows.append([cell.strip().strip("`") for cell in line.strip("|").split(" | ")])
        elif rows:
            break
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([rows[0], *rows[2:]])
    return out.getvalue()


def stored(name: str) -> list[dict[str, str]]:
    """Return the stored rows of a table."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Mark:
    """A value with its interval, and the series that it belongs to."""

    value: float
    low: float
    high: float
    series: int


def _mark(text: str, series: int) -> Mark:
    """Return the mark for a text such as ``"83 (80–86)"``, ``"0.60 [0.47, 0.71]"`` or ``"0.308"``."""
    value, *interval = (float(number) for number in re.findall(r"\d+(?:\.\d+)?", text))
    low, high = interval[:2] if len(interval) > 1 else (value, value)
    return Mark(value, low, high, series)


def charts() -> dict[str, str]:
    """Return all charts: file name, SVG."""
    return {
        "chart-frontier.svg": _frontier(),
        "chart-noise.svg": _noise(),
        "chart-recipes.svg": _recipes(),
        "chart-contested.svg": _contested(),
        "chart-verdicts.svg": _verdicts(),
    }


def _frontier() -> str:
    rows = [
        (row["defense"], [_mark(row["reconstructed (ASR)"], 0), _mark(row["re-identified"], 1)])
        for row in stored("frontier")
    ]
    title = "Share of 36 images, in per cent, with 95 % intervals"
    return _dots(title, ("reconstructed", "re-identified"), rows, (0, 25, 50, 75, 100))


def _noise() -> str:
    rows = []
    for row in stored("noise"):
        told = [(row["iDLG, naive"], row["iDLG, adaptive"]), (row["Posterior, naive"], row["Posterior, adaptive"])]
        strongest = [naive if adaptive == "\u2013" else adaptive for naive, adaptive in told]
        marks = [_mark(text.split(")")[0].replace("%", ""), series) for series, text in enumerate(strongest)]
        marks.append(_mark(strongest[1].rsplit(", ", 1)[1], 2))
        scale = row["Laplace scale"]
        rows.append(("no noise" if scale == "none" else f"Laplace scale {scale}", marks))
    series = ("reconstructed by iDLG", "reconstructed by Posterior", "re-identified by Posterior")
    return _dots("Share of images, in per cent, with 95 % intervals of what is reconstructed", series, rows)


def _recipes() -> str:
    rows = [(f"{row['recipe']}, {row['set']}", [_mark(row["time ratio"], 1)]) for row in stored("recipes")]
    title = "Seconds of the textbook loop over those of MedPFL, for an image that both reconstruct"
    return _dots(title, (), rows, (1, 2, 5, 10, 20, 50, 100, 200), log=True)


def _contested() -> str:
    columns = ("SSIM", "invertinggradients: SSIM", "leakpro huang: SSIM")
    rows = [(row["cell"], [_mark(row[column], i) for i, column in enumerate(columns)]) for row in stored("contested")]
    series = ("Posterior (MedPFL)", "invertinggradients (breaching)", "huang (LeakPro)")
    return _dots("Mean SSIM of 72 images, at equal time", series, rows, (0, 0.25, 0.5, 0.75, 1))


def _verdicts() -> str:
    rows = []
    for row in stored("verdicts"):
        if (row["images leak"], row["images an update"], row["attacks"]) == ("read, one by one", "1", "5"):
            for rate in ("none leak", "10 % leak", "20 % leak", "50 % leak"):
                shares = [float(share) for share in row[rate].split(" / ")]
                leaking = "no image leaks" if rate == "none leak" else rate.replace("leak", "of images leak")
                rows.append((f"{row['updates']} updates; {leaking}", shares))
    title = "How often each verdict is given, in per cent of 200 simulated audits with 5 attacks"
    return _bars(title, ("leaks", "no leak found", "inconclusive"), rows)


def _dots(
    title: str,
    series: Sequence[str],
    rows: Sequence[tuple[str, list[Mark]]],
    ticks: Sequence[float] = (0, 25, 50, 75, 100),
    log: bool = False,
) -> str:
    """Return a chart with a line for each row, and on it a dot with its interval for each mark."""

    def place(value: float) -> float:
        low, high, value = (log10(n) for n in (ticks[0], ticks[-1], value)) if log else (ticks[0], ticks[-1], value)
        return _LEFT + _PLOT * (value - low) / (high - low)

    parts, top = _head(title, series, len(rows), [(f"{tick:g}", place(tick)) for tick in ticks])
    for i, (label, marks) in enumerate(rows):
        y = top + _STEP * (i + 0.5)
        parts.append(_text(_LEFT - 12, y + 4, label, anchor="end"))
        for mark in marks:
            shift = y + (mark.series - (len(series) - 1) / 2) * 6 if series else y
            color = COLORS[mark.series]
            if mark.high > mark.low:
                parts.append(_line(place(mark.low), shift, place(mark.high), shift, color, 1.5))
            parts.append(f'<circle cx="{place(mark.value):.1f}" cy="{shift:.1f}" r="3.5" fill="{color}"/>')
    return _whole(title, parts, top + _STEP * len(rows) + 30)


def _bars(title: str, series: Sequence[str], rows: Sequence[tuple[str, list[float]]]) -> str:
    """Return a chart with a bar for each row, divided into shares that sum to 100."""
    ticks = [(f"{tick}", _LEFT + _PLOT * tick / 100) for tick in (0, 25, 50, 75, 100)]
    parts, top = _head(title, series, len(rows), ticks)
    for i, (label, shares) in enumerate(rows):
        y, x = top + _STEP * i + 4, float(_LEFT)
        parts.append(_text(_LEFT - 12, y + 11, label, anchor="end"))
        for share, color in zip(shares, COLORS, strict=True):
            width = _PLOT * share / 100
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="14" fill="{color}"/>')
            x += width
    return _whole(title, parts, top + _STEP * len(rows) + 30)


def _head(title: str, series: Sequence[str], rows: int, ticks: list[tuple[str, float]]) -> tuple[list[str], int]:
    """Return title, legend and scale of a chart, and the height at which its rows begin."""
    parts, x, top = [_text(16, 24, title, weight="bold")], 16.0, 58 if series else 40
    for name, color in zip(series, COLORS, strict=False):
        parts += [f'<circle cx="{x + 5:.1f}" cy="42" r="4" fill="{color}"/>', _text(x + 14, 46, name)]
        x += 34 + 6.6 * len(name)
    bottom = top + _STEP * rows
    for y in range(top, bottom, 2 * _STEP):  # bands keep the marks of a row together
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{_PLOT}" height="{_STEP}" fill="#f3f5f7"/>')
    for label, place in ticks:
        parts += [_line(place, top, place, bottom, _LINE, 1), _text(place, bottom + 16, label, _MUTED, "middle")]
    return parts, top


def _text(x: float, y: float, text: str, color: str = _INK, anchor: str = "start", weight: str = "normal") -> str:
    style = f'fill="{color}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float, color: str, width: float) -> str:
    ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width:g}"/>'


def _whole(title: str, parts: list[str], height: int) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    font = 'font-family="system-ui, sans-serif" font-size="12.5" role="img"'
    ground = f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#ffffff"/>'
    return "\n".join([f"{head} {font}>", f"<title>{escape(title)}</title>", ground, *parts, "</svg>", ""])


def main() -> None:
    """Write the stored rows from the pages' tables, and the charts."""
    RESULTS.mkdir(exist_ok=True)
    for name, (page, heading) in TABLES.items():
        (RESULTS / f"{name}.csv").write_text(table_in(page, heading))
    for name, drawing in charts().items():
        (PICTURES / name).write_text(drawing)


if __name__ == "__main__":
    main()
