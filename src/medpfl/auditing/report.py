"""An audit's report, and how to rebuild it from a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpfl.auditing.privacy.bounds import bounded, check_bounds
from medpfl.auditing.store import AUDIT, ROWS, Store, read_rows
from medpfl.core.atomic_files import as_csv, write
from medpfl.core.errors import InputError
from medpfl.core.experiments.settings import Settings
from medpfl.core.types import Finding
from medpfl.judging.summary import Context, summarize
from medpfl.judging.types import Cell
from medpfl.runs.directory import RunDirectory, private_folder, reading, share_folder
from medpfl.runs.jobs import JobKey, job_of
from medpfl.runs.study_key import class_names

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from medpfl.reporting.figures.plots import Plot

__all__ = ["Comparison", "Report", "compare", "finish", "read", "reread"]


@dataclass(frozen=True, eq=False)
class Report:
    """The result of an audit.

    Attributes:
        summary: cells, one for each attack, defense and knowledge of the attacker.
        rows: findings, one per image.
        settings: the audit's settings, with facts found during the audit.
        pages: files written.
        classes: class names by label index, if known; only the key file stores them.
        store: where the target images and guesses are, unless none are kept.
        pixels: of a run directory: the key's tag, and the images' digest under that key, which says no more than
            whether two sets are equal.
    """

    summary: list[Cell]
    rows: list[Finding]
    settings: Settings
    pages: tuple[Path, ...] = ()
    classes: tuple[str, ...] = ()
    store: Store | None = field(default=None, repr=False)
    pixels: tuple[str, str] = ("", "")

    def verdict(self) -> tuple[str, str]:
        """Return the verdict in plain English: without a defense, and with defenses."""
        from medpfl.reporting.verdict import verdict_sentences

        return verdict_sentences(self.summary, self.settings)

    def __str__(self) -> str:
        return "\n".join(self.verdict())

    def _repr_html_(self) -> str:
        """Return the verdict and a table for a notebook, without an image."""
        from medpfl.reporting.figures.notebook import table

        return table(self.summary, self.verdict())

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the rows as CSV, a line for each image, attack and defense, and write them to a file if one is named.

        A column holds a score each (``ssim``, ``psnr`` and so on). No row holds an image or a name.
        """
        from medpfl.reporting.figures.notebook import columns, flat_rows

        rows = flat_rows(self.rows)
        text = as_csv(columns(rows), rows)
        if path is not None:
            write(Path(path), text.encode())
        return text

    def to_dataframe(self) -> Any:
        """Return the rows as a `pandas.DataFrame`, with the columns of `to_csv`.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            from pandas import DataFrame  # type: ignore[import-not-found]  (no dependency: only users of it have it)
        except ImportError:
            raise InputError("to_dataframe needs pandas: pip install pandas, or use to_csv()") from None
        from medpfl.reporting.figures.notebook import flat_rows

        return DataFrame(flat_rows(self.rows))

    def plot(self) -> Plot:
        """Draw each attack's and defense's rates with intervals; return a matplotlib figure and its axes."""
        from medpfl.reporting.figures.plots import plot_cells

        return plot_cells(self.summary)

    def images(self, worst: int = 8) -> tuple[Figure, np.ndarray]:
        """Draw the images that were reconstructed best, above their reconstructions; each image counts once.

        The figure shows patients' images: do not share it.

        Args:
            worst: number of images, at least 1.

        Returns:
            A matplotlib figure, and its axes (2, N).

        Raises:
            InputError: `worst` is below 1, or the run kept no image.
        """
        if worst < 1:
            raise InputError(f"worst is {worst}: it must be at least 1")
        store = self.store
        rows = [row for row in self.rows if not row.control and store is not None and store.pictured(job_of(row))]
        if store is None or not rows:
            raise InputError("this run kept no image: repeat it without numbers_only")
        from medpfl.reporting.figures.plots import caption_of, plot_pictures

        best: dict[str, Finding] = {}
        for row in sorted(rows, key=lambda row: row.scores.get("ssim") or -1.0, reverse=True):
            best.setdefault(row.image, row)
        chosen = list(best.values())[:worst]
        return plot_pictures(
            [(*store.picture(row), caption_of(row.attack, row.defense, row.scores.get("ssim"))) for row in chosen]
        )


def finish(store: Store, settings: Settings, classes: tuple[str, ...] = ()) -> Report:
    """Judge a store's rows, write summary and pages if the store has a directory, and return the report.

    The page with images is written only if every job's pictures are there. `classes` goes into the report only.
    """
    report = replace(_judged(store, settings), classes=classes)
    if store.out is None:
        return report
    summary, rows = report.summary, report.rows
    import json

    from medpfl.reporting import write_pages

    shared = share_folder(store.out, AUDIT)
    write(shared / "summary.json", json.dumps([cell.to_dict() for cell in summary], indent=1).encode())
    shown = (private_folder(store.out), store.picture) if all(store.pictured(job_of(row)) for row in rows) else None
    pages = write_pages(shared, settings, summary, rows, shown)
    return replace(report, pages=tuple(pages))


def _judged(store: Store, settings: Settings) -> Report:
    rows = store.rows()
    summary = bounded(summarize(rows, Context.of(settings)), settings.bounds or {})
    return Report(summary, rows, settings, store=store)


def reread(out: Path) -> Report:
    """Rebuild the summary and pages in a run directory; its rows stay as they are.

    Raises:
        InputError: this is no run directory, it has no rows yet, or another version made it.
    """
    with reading(out):
        return _reread(out)


def _reread(out: Path) -> Report:
    store, report = read(out)
    return finish(store, report.settings, report.classes)


def read(out: Path) -> tuple[Store, Report]:
    """Return a run directory's store and its report, and write nothing. Call it under `reading`."""
    directory = RunDirectory(out, AUDIT)
    run = directory.noted()
    settings = Settings.of(run.get("settings", {}))
    check_bounds(out, settings.bounds or {})
    sizes: dict[JobKey, int] = {}
    for row in read_rows(out / ROWS, whole=True):
        sizes[job_of(row)] = sizes.get(job_of(row), 0) + 1
    # A job that was interrupted is shown only after the audit has redone it.
    planned = {JobKey(*key): count for *key, count in run.get("jobs", [])}
    whole = {job: count for job, count in sizes.items() if planned.get(job, count) == count}
    if not whole:
        raise InputError(f"'{out}' holds no finished rows yet: run the same audit command again")
    store, identity = Store(directory, whole), run["identity"]
    digest = identity.get("pixels", "")
    classes = class_names(out, digest)
    return store, replace(_judged(store, settings), classes=classes, pixels=(identity.get("key", ""), digest))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several audits side by side.

    Attributes:
        reports: the audits, in the given order.
        names: a name for each, for the screen; files name the runs by number and title only.
        pages: pages written.
    """

    reports: tuple[Report, ...]
    names: tuple[str, ...]
    pages: tuple[Path, ...] = ()

    def __str__(self) -> str:
        from medpfl.reporting.page.comparison import comparison_sentences

        return "\n".join(comparison_sentences(self.reports, self.names))

    def write_page(self, path: str | Path) -> Path:
        """Write the comparison as an HTML page, which holds no image."""
        from medpfl.reporting.page.comparison import write_comparison

        return write_comparison(Path(path), self.reports)

    def write_csv(self, path: str | Path) -> Path:
        """Write a line for each cell of each audit as CSV."""
        from medpfl.reporting.page.comparison import write_csv

        return write_csv(Path(path), self.reports)


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Compare the audits in some run directories, which stay as they are.

    Raises:
        InputError: there are fewer than two, or one holds no audit.
    """
    places = [Path(run) for run in runs]
    if len(places) < 2:
        raise InputError("a comparison needs two run directories or more: medpfl compare runs/a runs/b")
    reports = []
    for place in places:
        with reading(place):
            reports.append(read(place)[1])
    return Comparison(tuple(reports), tuple(map(str, places)))
