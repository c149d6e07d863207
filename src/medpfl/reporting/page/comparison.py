"""Several audits side by side: sentences, a table for the terminal, a CSV file and a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from medpfl.core.atomic_files import as_csv, write
from medpfl.core.experiments.settings import Settings
from medpfl.core.messages import counted
from medpfl.core.verdicts import INCONCLUSIVE
from medpfl.judging.types import Rate
from medpfl.reporting.facts import facts
from medpfl.reporting.page.answer import Bar, Step, bars
from medpfl.reporting.page.lines import lines_of
from medpfl.reporting.page.maker import maker
from medpfl.reporting.page.rendering import rendered
from medpfl.reporting.phrases import Cells, extent, grouped, hits
from medpfl.reporting.tables import with_unions
from medpfl.reporting.words import DASH, label

if TYPE_CHECKING:
    from medpfl.core.types import Finding

__all__ = ["comparison_sentences", "run_names", "write_comparison", "write_csv"]


class Compared(Protocol):
    """The parts of an audit's report that are compared."""

    @property
    def settings(self) -> Settings: ...
    @property
    def summary(self) -> Cells: ...
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


def comparison_sentences(runs: Sequence[Compared], names: Sequence[str]) -> tuple[str, str]:
    """Return a sentence on the least and the most exposed setting, and one on how far the runs can be compared."""
    ranked = sorted(
        ((extent(cells[0].union), name, cells) for name, one in zip(names, runs, strict=True)
         for cells in grouped(one.summary) if cells[0].union.images),
        key=lambda entry: entry[0],
    )  # fmt: skip
    if not ranked:
        return "None of these runs has a result.", _fair(runs)
    (_, low_run, low), (_, high_run, high) = ranked[0], ranked[-1]
    if ranked[0][0] == ranked[-1][0]:
        return f"All settings expose as many images: {_counts(low)}.", _fair(runs)
    chance = " Their 95 % intervals overlap, so the difference may be chance." if _overlap(low, high) else ""
    return (
        f"The fewest images are exposed in {low_run} {_with(low)} ({_counts(low)}), the most in {high_run} "
        f"{_with(high)} ({_counts(high)}).{chance}",
        _fair(runs),
    )


def _with(cells: Cells) -> str:
    name = label(cells[0].defense)
    return "without a defense" if name == "no defense" else f"with {name}"


def _counts(cells: Cells) -> str:
    union = cells[0].union
    read, told = hits(union.asr, union.images), hits(union.identified, union.images)
    more = "" if told is None else f", {told or 'none'} re-identified"
    return f"{read or 'none'} of {counted(union.images, 'image')} reconstructed{more}"


def _overlap(low: Cells, high: Cells) -> bool:
    """Return True if the intervals of both rates overlap."""
    pairs = [(one.union.asr, one.union.identified) for one in (low[0], high[0])]
    return all(_meet(a, b) for a, b in zip(*pairs, strict=True))


def _meet(a: Rate, b: Rate) -> bool:
    return a.ends is None or b.ends is None or (a.ends[0] <= b.ends[1] and b.ends[0] <= a.ends[1])


def _fair(runs: Sequence[Compared]) -> str:
    found = [name.partition(": ")[2] for name, _ in differences(runs) if not name.startswith(("Versions", "Run"))]
    if not found:
        return "The runs have the same settings, so they can be compared directly."
    data = any(name.startswith("Data") for name, _ in differences(runs))
    careful = "They attack different data, so compare them with care" if data else "Keep this in mind when comparing"
    some = ", ".join(dict.fromkeys(found[:5])) + (" and more" if len(found) > 5 else "")
    return f"The runs differ in: {some}. {careful}."


_COLUMNS = (
    "run", "attack", "defense", "knows_defense", "images", "asr", "asr_low", "asr_high", "identified",
    "identified_low", "identified_high", "ssim", "verdict", "flags",
)  # fmt: skip


def write_csv(path: Path, runs: Sequence[Compared]) -> Path:
    """Write a line for each cell of each run, and for all attacks on a defense together; it holds no image."""
    lines = []
    for name, one in zip(run_names(runs), runs, strict=True):
        for cell in with_unions(one.summary):
            known = {"run": name, **cell.to_dict(), "flags": " ".join(cell.flags)}
            lines.append({column: known[column] for column in _COLUMNS})
    return write(path, as_csv(_COLUMNS, lines).encode())


def write_comparison(path: Path, runs: Sequence[Compared]) -> Path:
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


def _bars(name: str, one: Compared) -> list[Bar]:
    return [bar._replace(run=name) for bar in bars(one.summary)]


def _steps(runs: Sequence[Compared]) -> list[Step]:
    states = Counter(cells[0].union.verdict for one in runs for cells in grouped(one.summary))
    found = [Step("Read each run's own page: it says what its result means, and what to do next.")]
    if differences(runs):
        found.append(Step("To compare one setting, repeat a run with only that setting changed."))
    if states[INCONCLUSIVE]:
        found.append(Step("Some results are inconclusive: repeat those runs with more images (--images)."))
    return found
