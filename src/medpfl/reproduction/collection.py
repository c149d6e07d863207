"""A study's results so far, and the files made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medpfl.auditing.report import Report, reread
from medpfl.auditing.store import ROWS
from medpfl.core.messages import SHARE_FOLDER
from medpfl.reproduction.accuracy import Accuracies
from medpfl.reproduction.legacy import write_legacy
from medpfl.reproduction.outputs import REPRODUCTION, Gap, of_version, write_tables
from medpfl.reproduction.pictures import write_pictures
from medpfl.reproduction.published import Published
from medpfl.reproduction.tables import Row, rows_of
from medpfl.reproduction.task import Task, training_folder
from medpfl.runs.directory import read_json, share_folder

__all__ = ["Collection", "Reproduction"]


@dataclass(frozen=True)
class Reproduction:
    """The results of the experiments.

    Attributes:
        rows: one entry for each experiment, set, part, attack and defense.
        gaps: experiments, sets and parts that were not run.
        tables: the table files.
        legacy: the page and the picture on the notebooks' scores.
        pictures: panels of private images.
    """

    rows: list[Row]
    gaps: list[Gap]
    tables: tuple[Path, ...] = ()
    legacy: tuple[Path, ...] = ()
    pictures: tuple[Path, ...] = ()


@dataclass
class Collection:
    """Collects rows, gaps and panels while a study runs.

    Attributes:
        out: the run directory.
        published: published values for comparison.
        gaps: experiments, sets and parts that were not run.
        costs: accuracies by experiment.
        rows: rows so far.
        pictures: panels so far.
    """

    out: Path
    published: list[Published]
    gaps: list[Gap]
    costs: dict[str, Accuracies] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

    def add(self, task: Task, report: Report, remark: str = "") -> None:
        """Add an audit's cells, with each defense's accuracy if it is known, and draw its panels.

        Args:
            task: the audit's task.
            report: the audit's result.
            remark: text to append to the form in its rows.
        """
        found = rows_of(task.experiment, task.set, task.part.name, f"{task.form}{remark}", report)
        costs = self.costs.get(task.experiment, {})
        more = _of_training(training_folder(task.out(self.out)))
        self.rows += [{**row, **more, **costs.get(row["defense"], {})} for row in found]
        self.pictures += write_pictures(task.out(self.out), self.out, task.title)

    def reread(self, task: Task, force: bool) -> None:
        """Add an audit's cells from its rows on disk, or a gap if there are none.

        Raises:
            InputError: if the rows come from another version, unless `force`; the tables then say so.
        """
        run = task.out(self.out)
        if (run / ROWS).is_file():
            self.add(task, reread(run), of_version(run, force))
        else:
            self.gaps.append(Gap(task.experiment, str(task), "there are no rows for it", False))

    def tables(self) -> tuple[Path, ...]:
        """Write the tables for all rows so far."""
        return write_tables(self.out, self.rows, self.gaps, self.published)

    def whole(self) -> Reproduction:
        """Write the page on legacy scores and all tables, and return the results."""
        legacy = tuple(write_legacy(share_folder(self.out, REPRODUCTION)))
        return Reproduction(self.rows, self.gaps, self.tables(), legacy, tuple(self.pictures))


def _of_training(run: Path) -> dict[str, float]:
    """Return the balanced accuracy, on held-out images, of a network trained for an audit."""
    scores = (read_json(run / SHARE_FOLDER / "summary.json") or {}).get("scores", {}).get("validation", {})
    return {"trained_accuracy": scores["balanced_accuracy"]} if "balanced_accuracy" in scores else {}
