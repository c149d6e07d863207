"""What came of a study so far, and what is written of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medpfl.auditing.report import Report, reread
from medpfl.auditing.store import ROWS
from medpfl.core.messages import SHARE_FOLDER
from medpfl.reproduction.accuracy import Accuracies
from medpfl.reproduction.legacy import write_legacy
from medpfl.reproduction.outputs import Gap, of_version, write_tables
from medpfl.reproduction.pictures import write_pictures
from medpfl.reproduction.published import Published
from medpfl.reproduction.tables import Row, rows_of
from medpfl.reproduction.task import Task, training_folder
from medpfl.runs.directory import read_json, share_folder

__all__ = ["Collection", "Reproduction"]


@dataclass(frozen=True)
class Reproduction:
    """What came of the experiments.

    Attributes:
        rows: one entry by experiment, set, part, attack and defense.
        gaps: what was not run.
        tables: the files written.
        legacy: page and picture on what the notebooks' scores do.
        pictures: panels of private images.
    """

    rows: list[Row]
    gaps: list[Gap]
    tables: tuple[Path, ...] = ()
    legacy: tuple[Path, ...] = ()
    pictures: tuple[Path, ...] = ()


@dataclass
class Collection:
    """Rows, gaps and panels as they are made.

    Attributes:
        out: the run directory.
        published: values that go beside ours.
        gaps: what was not run.
        costs: accuracies by experiment.
    """

    out: Path
    published: list[Published]
    gaps: list[Gap]
    costs: dict[str, Accuracies] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

    def add(self, task: Task, report: Report, remark: str = "") -> None:
        """The cells of an audit, each with the accuracy that its defense leaves, where it is known; and its panels.

        Args:
            task: what was run.
            report: what came of it.
            remark: added to the form of its rows.
        """
        found = rows_of(task.experiment, task.set, task.part.name, f"{task.form}{remark}", report)
        costs = self.costs.get(task.experiment, {})
        more = _of_training(training_folder(task.out(self.out)))
        self.rows += [{**row, **more, **costs.get(row["defense"], {})} for row in found]
        self.pictures += write_pictures(task.out(self.out), self.out, task.title)

    def reread(self, task: Task, force: bool) -> None:
        """The same from the rows on the disk; a gap where there are none.

        Raises:
            InputError: they are of another version, unless `force`, which has the tables say so.
        """
        run = task.out(self.out)
        if (run / ROWS).is_file():
            self.add(task, reread(run), of_version(run, force))
        else:
            self.gaps.append(Gap(task.experiment, str(task), "there are no rows of it", False))

    def tables(self) -> tuple[Path, ...]:
        """Writes the tables of what there is."""
        return write_tables(self.out, self.rows, self.gaps, self.published)

    def whole(self) -> Reproduction:
        """Writes all there is to write."""
        legacy = tuple(write_legacy(share_folder(self.out)))
        return Reproduction(self.rows, self.gaps, self.tables(), legacy, tuple(self.pictures))


def _of_training(run: Path) -> dict[str, float]:
    """How good a network is that was trained for an audit: balanced accuracy of the images held out."""
    scores = (read_json(run / SHARE_FOLDER / "summary.json") or {}).get("scores", {}).get("validation", {})
    return {"trained_accuracy": scores["balanced_accuracy"]} if "balanced_accuracy" in scores else {}
