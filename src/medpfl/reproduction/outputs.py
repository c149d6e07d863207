"""A study's output files: tables of its rows, and the places of its panels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from medpfl.auditing.store import ROWS, read_rows
from medpfl.core.atomic_files import write
from medpfl.core.errors import InputError
from medpfl.core.messages import PRIVATE_FOLDER
from medpfl.reproduction import experiments
from medpfl.reproduction.modalities import KEPT, kept, relations
from medpfl.reproduction.published import Published, beside
from medpfl.reproduction.tables import Row, as_latex, as_markdown, as_table
from medpfl.runs.directory import RUNS, Kind, share_folder
from medpfl.runs.environment import versions

__all__ = ["REPRODUCTION", "Gap", "of_version", "panels_of", "write_tables"]

_TABLES = (f"{name}.{suffix}" for name in experiments.EXPERIMENTS for suffix in ("md", "csv", "tex"))
REPRODUCTION = Kind("reproduction", 2, (*_TABLES, "legacy.md", "legacy.png"), ("panels/*.png",), rows=False)
"""Since format 2, the runs lie inside, and files that may be shared have their own folder."""


class Gap(NamedTuple):
    """Something that was not run.

    Attributes:
        experiment: the experiment; ``""`` for all.
        what: the name for it in the tables.
        why: the reason, for the terminal only.
        failed: true if it could have run but failed.
    """

    experiment: str
    what: str
    why: str
    failed: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


def panels_of(out: Path) -> Path:
    """Return the folder for panels of private images."""
    return out / PRIVATE_FOLDER / "panels"


def of_version(run: Path, force: bool) -> str:
    """Return a remark for the tables if the rows come from another version, else an empty string.

    Raises:
        InputError: if they do and `force` is false.
    """
    own = versions()["medpfl"]
    if not (other := sorted({row.versions.get("medpfl", "unknown") for row in read_rows(run / ROWS)} - {own})):
        return ""
    made = f"rows of MedPFL {', '.join(other)}"
    if not force:
        raise InputError(f"'{run}' holds {made}, but this is {own}: run again, or add --force to use them as they are")
    return f", {made}"


def write_tables(out: Path, rows: list[Row], gaps: list[Gap], theirs: list[Published]) -> tuple[Path, ...]:
    """Write Markdown, CSV and LaTeX tables for each experiment that has rows."""
    made, folder = [], share_folder(out, REPRODUCTION)
    for experiment in dict.fromkeys(row["experiment"] for row in rows):
        own = [row for row in rows if row["experiment"] == experiment]
        notes = [gap.what for gap in gaps if gap.experiment in ("", experiment)]
        study = experiments.study(experiment)
        text = as_markdown(study.title, study.source, own, notes)
        found = sorted((out / RUNS).glob(f"{experiment}-*/{KEPT}"))
        if runs := {path.parents[1].name.split("-")[1]: path.parents[1] for path in found}:
            rows_by_set = {name: list(read_rows(run / ROWS)) for name, run in runs.items()}
            text += "\n" + relations(rows_by_set, {name: kept(run) for name, run in runs.items()}) + "\n"
        if compared := beside(theirs, own):
            text += "\n" + compared
        for suffix, content in (("md", text), ("csv", as_table(own)), ("tex", as_latex(own))):
            made.append(write(folder / f"{experiment}.{suffix}", content.encode()))
    return tuple(made)
