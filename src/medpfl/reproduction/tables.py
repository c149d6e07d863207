"""The study's tables in Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from medpfl.auditing.report import Report
from medpfl.core.atomic_files import as_csv
from medpfl.judging.types import Cell
from medpfl.reporting.figures.selection import cell_rows
from medpfl.reporting.words import DASH, label, number, percent
from medpfl.reproduction.comparison import Row, beside, with_interval
from medpfl.reproduction.markdown import markdown_table

__all__ = ["Row", "as_latex", "as_markdown", "as_table", "rows_of"]

_LEGACY = ("legacy_ssim_range0", "legacy_ssim_range255", "legacy_oracle_iterate")
_NESTED = ("by_patient", "masks", "schema")
"""Entries of a cell that are not single numbers."""


class _Column(NamedTuple):
    title: str
    text: Callable[[Row], str]


def _trained_here(row: Row) -> str:
    """Return a remark for networks that the study itself trained on these images, else an empty string."""
    of, _, last = row["weights"].rpartition(", ")
    said = "" if row["part"].endswith("trained") else ", on weights trained"
    good = f", balanced accuracy {percent(row['trained_accuracy'])}" if "trained_accuracy" in row else ""
    return f"{said} here, {last}{good}" if of == "trained" else ""


_ACCURACY = _Column(
    "Accuracy left",
    lambda row: with_interval(row, "accuracy") if "accuracy" in row else DASH,
)

_COLUMNS = (
    _Column("Set", lambda row: row["set"]),
    _Column("Attack", lambda row: row["part"] + _trained_here(row)),
    _Column("Defense", lambda row: label(row["defense"])),
    _Column("Attacker knows defense?", lambda row: {None: DASH, False: "no", True: "yes"}[row["knows_defense"]]),
    _Column("Images", lambda row: number(row["images"], "d")),
    _Column("ASR", lambda row: with_interval(row, "asr")),
    _Column("SSIM", lambda row: with_interval(row, "ssim")),
    _Column("Best SSIM without the update", lambda row: number(_without_update(row))),
    _Column("MSE", lambda row: number(row["mse"], ".2g")),
    _Column("PSNR, dB", lambda row: number(row["psnr"], ".1f")),
    _Column("Re-identified", lambda row: with_interval(row, "identified")),
    _ACCURACY,
    _Column("s/image", lambda row: number(row["seconds_per_image"], ".2g")),
    _Column("Legacy SSIM, range 0", lambda row: number(row[_LEGACY[0]])),
    _Column("Legacy SSIM, range 255", lambda row: number(row[_LEGACY[1]])),
    _Column("Legacy oracle iterate", lambda row: number(row[_LEGACY[2]])),
    _Column("Flags", lambda row: ", ".join(row["flags"])),
)


def _columns(rows: Sequence[Row]) -> list[_Column]:
    return [column for column in _COLUMNS if column is not _ACCURACY or any("accuracy" in row for row in rows)]


def rows_of(experiment: str, name: str, part: str, form: str, report: Report) -> list[Row]:
    """Return an audit's cells, with the study's form and the scores that the notebooks would have printed."""
    place = {"experiment": experiment, "set": name, "part": part, "form": form}
    place["weights"] = report.settings.experiment.get("weights", "untrained")
    return [{**place, **cell.to_dict(), **_legacy(cell, report)} for cell in report.summary]


def _legacy(cell: Cell, report: Report) -> dict[str, float | None]:
    own = [row.scores for row in cell_rows(cell, report.rows)]
    means = {}
    for name in _LEGACY:
        values = [score for scores in own if (score := scores.get(name)) is not None]
        means[name] = sum(values) / len(values) if values else None
    return means


def _without_update(row: Row) -> float | None:
    """Return the best baseline SSIM; a guess that learned nothing from the update can score this much."""
    keys = ("ssim_mean_image", "ssim_nearest", "ssim_random_update")
    return max((row[key] for key in keys if row.get(key) is not None), default=None)


def as_markdown(title: str, source: str, rows: Sequence[Row], gaps: Sequence[str]) -> str:
    """Return a page with the table, its legend, naive and adaptive results side by side, and the gaps."""
    columns = _columns(rows)
    cells = [[column.text(row) for column in columns] for row in rows]
    lines = markdown_table([column.title for column in columns], cells)
    missing = ["", "Not run:", "", *(f"- {gap}" for gap in gaps)] if gaps else []
    both = ["", pairs] if (pairs := beside(rows)) else []
    meaning = _MEANING + (_OF_ACCURACY if _ACCURACY in columns else "") + _OF_LEGACY
    return "\n".join([f"# {title}", "", source, "", _form(rows), "", *lines, "", meaning, *both, *missing, ""])


_MEANING = (
    "Attacker knows defense: the attack knows what the defense discloses. In brackets: 95 % intervals. ASR: the share "
    "of images reconstructed, with an SSIM of at least 0.9 for the guess that the attack itself chose. Re-identified: "
    "the share of images whose guess is nearer to them than to any other image of the gallery. Best SSIM without the "
    "update: the highest mean SSIM of the mean image, the nearest other image, and the same attack on random numbers."
)
_OF_ACCURACY = (
    " Accuracy left: balanced accuracy of a small network trained under that defense, on the test images of "
    "pneumonia_mnist."
)
_OF_LEGACY = (
    " The legacy columns repeat scores that the paper's notebooks computed in places; do not compare them with other "
    "scores. With data range 0, the constants that stabilize SSIM are zero. With 255 on normalized pixels, they swamp "
    "it (see legacy.md). The oracle iterate is the one nearest to the target image, which no attacker can pick; here "
    "it is scored with the corrected SSIM."
)


def _form(rows: Sequence[Row]) -> str:
    """Return a sentence on the rows' form; with several forms, on the parts of each."""
    parts: dict[str, dict[str, None]] = {}
    for row in rows:
        parts.setdefault(row["form"], {})[row["part"]] = None
    some = [form if len(parts) == 1 else f"{form} ({'; '.join(names)})" for form, names in parts.items()]
    few = " Few images and steps: the numbers mean little." if any("quick" in form for form in parts) else ""
    return f"Form: {'. '.join(some)}.{few}"


def as_table(rows: Sequence[Row]) -> str:
    """Return all rows with all numbers as CSV."""
    return as_csv(list(dict.fromkeys(name for row in rows for name in row if name not in _NESTED)), rows)


def as_latex(rows: Sequence[Row]) -> str:
    """Return the table as LaTeX for a paper, without flags and legacy columns."""
    columns = [column for column in _columns(rows) if column.title != "Flags" and not column.title.startswith("Legacy")]
    body = [" & ".join(_tex(column.text(row)) for column in columns) + r" \\" for row in rows]
    lines = [
        r"% needs \usepackage{booktabs}",
        f"% {_form(rows)}",
        r"\begin{tabular}{lll" + "r" * (len(columns) - 3) + "}",
        r"\toprule",
        " & ".join(_tex(column.title) for column in columns) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "|": r"\textbar{}",
    "\u2013": "--", "\u2212": "$-$", "\u221e": r"$\infty$", "<": "$<$", ">": "$>$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
