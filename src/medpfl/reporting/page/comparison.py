"""Several audits side by side: sentences, a table for the terminal, a CSV file and a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from medpfl.core.atomic_files import as_csv, write
from medpfl.core.verdicts import INCONCLUSIVE
from medpfl.reporting.facts import facts
from medpfl.reporting.page.answer import Bar, Step, bars
from medpfl.reporting.page.lines import lines_of
from medpfl.reporting.page.maker import maker
from medpfl.reporting.page.ranking import Compared, differing_tests, ranking_sentences
from medpfl.reporting.page.rendering import rendered
from medpfl.reporting.phrases import grouped
from medpfl.reporting.tables import with_unions
from medpfl.reporting.words import DASH

if TYPE_CHECKING:
    from medpfl.core.types import Finding

__all__ = ["comparison_sentences", "run_names", "write_comparison", "write_csv"]


class Audited(Compared, Protocol):
    """The parts of an audit's report that are compared and shown."""

    @property
    def rows(self) -> Sequence[Finding]: ...


_ALWAYS = {"Run": ("started",), "Experiment": ("victims per stack", "memory gib")}
"""Settings that differ between runs without making them another experiment."""


def run_names(runs: Sequence[Compared]) -> list[str]:
    """Return the runs' names for files: a number, and title or alias; never a path, which may name a patient."""
    titles = [one.settings.about.get("title") or one.settings.about.get("alias", "") for one in runs]
    return [f"run {i}" + (f" ({title})" if title else "") for i, title in enumerate(titles, 1)]


def differences(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Return the settings in which the runs differ, each with its value in every run."""
    told = [
        {
            (group.title, name): ", ".join(lines)
            for group in facts(one.settings.to_dict())
            for name, lines in group.items
            if name not in _ALWAYS.get(group.title, ())
        }
        for one in runs
    ]
    every = dict.fromkeys(key for own in told for key in own)
    found = [(f"{key[0]}: {key[1]}", [own.get(key, DASH) for own in told]) for key in every]
    return [(name, values) for name, values in found if len(set(values)) > 1]


def comparison_sentences(runs: Sequence[Compared], names: Sequence[str]) -> list[str]:
    """Return sentences on the least and the most exposed setting, on what is not ranked, and on what differs."""
    return [*ranking_sentences(runs, names), _fair(runs)]


def _fair(runs: Sequence[Compared]) -> str:
    found = [name.partition(": ")[2] for name, _ in differences(runs) if not name.startswith(("Versions", "Run"))]
    if not found:
        same = "The runs have the same settings"
        return f"{same} otherwise." if differing_tests(runs) else f"{same}, so they can be compared directly."
    some = ", ".join(dict.fromkeys(found[:5])) + (" and more" if len(found) > 5 else "")
    return f"The runs differ in: {some}. Keep this in mind when comparing."


_RUN = ("model", "weights", "data", "plan", "draws")
"""Columns from a run's options."""
_CELL = (
    "attack", "defense", "knows_defense", "images", "updates", "evaluations", "seconds_per_image",
    "asr", "asr_low", "asr_high", "asr_worst", "control_asr", "asr_random_update", "asr_mean_image", "asr_nearest",
    "identified", "identified_low", "identified_high", "gallery", "chance", "identified_random_update",
    "identified_mean_image", "ssim", "ssim_low", "ssim_high", "ssim_random_update", "ssim_mean_image", "ssim_nearest",
    "psnr", "mse", "ncc", "label_accuracy", "label_accuracy_low", "label_accuracy_high", "label_chance", "verdict",
    "flags",
)  # fmt: skip
"""Columns from a cell, as in ``summary.json``; its ``clusters`` are ``updates`` here, as in a union."""
_COLUMNS = ("run", *_RUN, "seed", "tolerance", "device", "medpfl", *_CELL)


def write_csv(path: Path, runs: Sequence[Compared]) -> Path:
    """Write a line for each cell of each run, and for all attacks on a defense together; it holds no image."""
    lines = []
    for name, one in zip(run_names(runs), runs, strict=True):
        settings = one.settings
        versions = {"medpfl": settings.versions.get("medpfl")}
        about = {"run": name, "seed": settings.seed, "tolerance": settings.tolerance, "device": settings.device}
        options = {column: settings.experiment.get(column) for column in _RUN}
        for cell in with_unions(one.summary):
            told = {**cell.to_dict(), "updates": cell.clusters, "flags": " ".join(cell.flags)}
            lines.append({**about, **versions, **options, **{column: told[column] for column in _CELL}})
    return write(path, as_csv(_COLUMNS, lines).encode())


def write_comparison(path: Path, runs: Sequence[Audited]) -> Path:
    """Write the page; it holds no image and names no file."""
    names = run_names(runs)
    page = rendered(
        "comparison",
        {},
        sentences=comparison_sentences(runs, names),
        bars=[bar for name, one in zip(names, runs, strict=True) for bar in _bars(name, one)],
        lines=[
            line._replace(run=name)
            for name, one in zip(names, runs, strict=True)
            for line in lines_of(one.summary, one.rows)
        ],
        runs=True,
        makers=[(name, maker(one.settings.to_dict())) for name, one in zip(names, runs, strict=True)],
        columns=("Setting", *names),
        differences=[[(name, ""), *((value, "") for value in values)] for name, values in differences(runs)],
        steps_next=_steps(runs),
    )
    return write(path, page)


def _bars(name: str, one: Audited) -> list[Bar]:
    return [bar._replace(run=name) for bar in bars(one.summary)]


def _steps(runs: Sequence[Compared]) -> list[Step]:
    states = Counter(cells[0].union.verdict for one in runs for cells in grouped(one.summary))
    found = [Step("Read each run's own page: it says what its result means, and what to do next.")]
    if differences(runs):
        found.append(Step("To compare one setting, repeat a run with only that setting changed."))
    if differing_tests(runs):
        found.append(
            Step(
                "To rank the runs, repeat them with the same attacks, images and seed. The time that --minutes allows "
                "gives each run its own number of evaluations, so state the number.",
                "medpfl audit ... --attack 'WorstCase(evaluations=2000)'",
            )
        )
    if states[INCONCLUSIVE]:
        found.append(Step("Some results are inconclusive: their runs' own pages say what would decide them."))
    return found
