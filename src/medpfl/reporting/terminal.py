"""The command line's final output: a table, notes and sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console

from medpfl.core.experiments.groups import UNLABELED
from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.messages import PRIVATE_FOLDER, SHARE_FOLDER, may_show, told
from medpfl.core.rounds import Round
from medpfl.core.types import Finding
from medpfl.judging.types import Cell
from medpfl.reporting.federation import Overview as Federated
from medpfl.reporting.federation import federation_table, sentences
from medpfl.reporting.figures.selection import unread_lines
from medpfl.reporting.frontier import frontier_table, how_to_read, legend
from medpfl.reporting.leakage import RoundCell, leakage_table
from medpfl.reporting.masks import mask_lines
from medpfl.reporting.page.limits import attacks_to_add
from medpfl.reporting.page.realism import Overview as Measured
from medpfl.reporting.page.realism import realism_table
from medpfl.reporting.patients import patient_lines
from medpfl.reporting.tables import similarity_without_update, terminal_table
from medpfl.reporting.training import training_table

__all__ = [
    "classes_line",
    "folders_line",
    "print_audit",
    "print_comparison",
    "print_evaluation",
    "print_federation",
    "print_frontier",
    "print_leakage",
    "print_realism",
    "print_training",
]


class Written(Protocol):
    """A result with pages on disk."""

    @property
    def pages(self) -> tuple[Path, ...]: ...


class Audited(Written, Protocol):
    """The parts of an audit that are printed."""

    @property
    def summary(self) -> Sequence[Cell]: ...
    @property
    def rows(self) -> Sequence[Finding]: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def classes(self) -> tuple[str, ...]: ...

    def verdict(self) -> tuple[str, str]: ...


class Evaluated(Protocol):
    """The parts of a standard evaluation that are printed."""

    @property
    def report(self) -> Audited: ...
    @property
    def lines(self) -> Sequence[str]: ...


class Comparing(Protocol):
    """The parts of a comparison that are printed."""

    @property
    def reports(self) -> Sequence[Audited]: ...
    @property
    def names(self) -> Sequence[str]: ...


class Overview(Written, Protocol):
    """The parts of several rounds' audits that are printed."""

    @property
    def summary(self) -> Sequence[RoundCell]: ...
    @property
    def reports(self) -> Mapping[int, Written]: ...


class Several(Written, Protocol):
    """The parts of a federation's audits that are printed."""

    @property
    def overview(self) -> Federated: ...


class Metered(Written, Protocol):
    """The parts of a realism meter's audits that are printed."""

    @property
    def overview(self) -> Measured: ...
    @property
    def settings(self) -> Settings: ...


class Chosen(Written, Protocol):
    """The parts of a frontier that are printed."""

    @property
    def points(self) -> Sequence[Json]: ...
    @property
    def recommendation(self) -> Json: ...
    @property
    def settings(self) -> Json: ...


class Trained(Written, Protocol):
    """The parts of a training that are printed."""

    @property
    def rows(self) -> Sequence[Round]: ...
    @property
    def settings(self) -> Json: ...


def print_audit(report: Audited, quiet: bool) -> None:
    """Print an audit's table, notes and verdict."""
    console = Console()
    if not quiet:
        console.print(terminal_table(report.summary))
        for line in [*patient_lines(report.summary), *mask_lines(report.summary)]:
            console.print(line, markup=False, highlight=False)
        for line in unread_lines(report.summary, report.rows):
            console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
        if similarity := similarity_without_update(report.summary):
            console.print(similarity, style="dim", markup=False, highlight=False)
        for note in report.settings.notes:
            console.print(note, style="dim")
        if more := attacks_to_add(report.summary, report.settings):
            console.print(more, style="dim", markup=False, highlight=False)
        for spec, epsilon in (report.settings.privacy or {}).items():
            console.print(f"{spec}: {epsilon}", markup=False, highlight=False, soft_wrap=True)
    named = any(name != f"class {i}" for i, name in enumerate(report.classes))
    if named and may_show(sys.stdout) and not quiet:
        # Never into a file: a class folder may bear a patient's name.
        console.print(classes_line(report.classes), style="dim", markup=False, highlight=False, soft_wrap=True)
    for sentence in report.verdict():
        console.print(sentence, soft_wrap=True)
    if not report.pages and not quiet:
        console.print("nothing was saved (to save rows and pages: --out DIR)", style="dim")
    _wrote(console, (page for page in report.pages if page.suffix == ".html"))


def print_leakage(found: Overview, quiet: bool) -> None:
    """Print an overview of several rounds' audits."""
    console = Console()
    if not quiet:
        console.print(leakage_table(found.summary))
    console.print(str(found), soft_wrap=True)
    audits = (page for report in found.reports.values() for page in report.pages if page.suffix == ".html")
    _wrote(console, [*found.pages, *audits])


def print_evaluation(evaluation: Evaluated, quiet: bool) -> None:
    """Print a standard evaluation's audit, and its lines to quote."""
    print_audit(evaluation.report, quiet)
    for line in evaluation.lines:
        print(line)


def print_comparison(found: Comparing, quiet: bool) -> None:
    """Print the tables of several audits under each other, and the comparison in words."""
    console = Console()
    for name, report in zip(found.names, found.reports, strict=True) if not quiet else ():
        console.print(f"\n{told(name, may_show(sys.stdout))}", style="bold", markup=False, highlight=False)
        console.print(terminal_table(report.summary))
    console.print(told(found, may_show(sys.stdout)), soft_wrap=True, markup=False, highlight=False)


def print_federation(found: Several, quiet: bool) -> None:
    """Print a table of a federation's records, and the verdict."""
    console = Console()
    if not quiet:
        console.print(federation_table(found.overview))
    _print_several(console, (text for _, text in sentences(found.overview)), found.pages, quiet)


def print_realism(found: Metered, quiet: bool) -> None:
    """Print a table of the realism meter's cases, notes, and the result."""
    console = Console()
    if not quiet:
        console.print(realism_table(found.overview))
        for note in found.settings.notes:
            console.print(note, style="dim", markup=False, highlight=False)
    _print_several(console, str(found).split("\n"), found.pages, quiet)
    for page in found.pages[:1]:
        runs = page.parents[1] / "runs"
        text = f"each case has its own pages in {runs}; those in a folder '{PRIVATE_FOLDER}' show patients' images"
        console.print(text, soft_wrap=True, markup=False, highlight=False)


def _print_several(console: Console, told: Iterable[str], pages: Sequence[Path], quiet: bool) -> None:
    for sentence in told:
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)
    if not pages and not quiet:
        console.print("nothing was saved (to save rows and pages: --out DIR)", style="dim")
    _wrote(console, pages)


def print_frontier(found: Chosen, quiet: bool) -> None:
    """Print a frontier's table, notes on how to read it, and the recommendation."""
    console = Console()
    if not quiet:
        console.print(frontier_table(found.points, found.recommendation))
        for line in [legend(found.recommendation), *how_to_read(found.settings), *found.settings["notes"]]:
            console.print(line, style="dim", markup=False, highlight=False)
    console.print(str(found), soft_wrap=True, markup=False)
    _wrote(console, found.pages)


def print_training(result: Trained, quiet: bool) -> None:
    """Print a training's table, notes and scores."""
    console = Console()
    if not quiet:
        console.print(training_table(result.rows))
        for note in result.settings.get("notes", []):
            console.print(note, style="dim")
    console.print(str(result), soft_wrap=True)
    _wrote(console, result.pages)


def folders_line(written: Iterable[Path]) -> str:
    """Return a line that names the run's folders that may be shared, and those with images.

    >>> folders_line([Path("run/share/report.html"), Path("run/private/pictures/1.png")])
    "may be shared: run/share (no image); must stay: run/private (patients' images)"
    """
    words = {SHARE_FOLDER: "may be shared: {} (no image)", PRIVATE_FOLDER: "must stay: {} (patients' images)"}
    folders = dict.fromkeys(folder for path in written for folder in path.parents[:2] if folder.name in words)
    found = {name: ", ".join(str(folder) for folder in folders if folder.name == name) for name in words}
    return "; ".join(text.format(found[name]) for name, text in words.items() if found[name])


def _wrote(console: Console, pages: Iterable[Path]) -> None:
    pages = list(pages)
    for page in pages:
        console.print(f"wrote {page}", soft_wrap=True, highlight=False)
    if pages:
        console.print(folders_line(pages), soft_wrap=True, highlight=False, markup=False)


def classes_line(classes: Sequence[str]) -> str:
    """Return the names of the classes, or why there are two although the images have no labels."""
    if tuple(classes) == UNLABELED:
        return "The images have no labels, so all are of class 0. Class 1 holds none: a loss needs two classes."
    return ", ".join(f"class {i}: {name}" for i, name in enumerate(classes))
