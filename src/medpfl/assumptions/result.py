"""The result of the realism meter, and its files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medpfl.assumptions.cases import Case
from medpfl.auditing.report import Report
from medpfl.core.atomic_files import as_csv, write
from medpfl.core.experiments.settings import Settings
from medpfl.reporting.page.realism import (
    CaseCells,
    Overview,
    numbers,
    realism_notebook,
    sentences,
    untested,
    write_realism_page,
)
from medpfl.runs.directory import Kind, share_folder

__all__ = ["REALISM", "Realism", "written"]

REALISM = Kind("realism", 1, ("realism.json", "realism.csv", "realism.html", "realism.pdf"), rows=False)

_SHARED = ("data", "model", "attacks", "images", "draws", "partition", "memory_gib")


@dataclass(frozen=True, eq=False)
class Realism:
    """The audits of all cases.

    Attributes:
        cases: the cases, in order; the first one is the most favorable for an attacker.
        reports: the audits, by the name of their run directory. The first one also holds the cases with noise.
        left_out: sentences on cases that could not be tested, and why.
        pages: the pages written; each audit has its own as well.
    """

    cases: Sequence[Case]
    reports: Mapping[str, Report]
    left_out: Sequence[str] = ()
    pages: tuple[Path, ...] = ()

    @property
    def summary(self) -> list[CaseCells]:
        """The cells of each case."""
        return [
            CaseCells(
                case.name,
                case.assumption,
                case.text,
                [cell for cell in self.reports[case.run].summary if cell.defense == case.defense],
            )
            for case in self.cases
        ]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The findings of all cases, each with its ``case``; those of a control have the first case of their audit."""
        names = {(case.run, case.defense): case.name for case in self.cases}
        return [
            {"case": names.get((run, row.defense), run), **row.to_dict()}
            for run, report in self.reports.items()
            for row in report.rows
        ]

    @property
    def overview(self) -> Overview:
        """Everything that the page and the terminal show."""
        return Overview(self.summary, self.left_out)

    @property
    def settings(self) -> Settings:
        """The settings that all cases share."""
        first, *others = (report.settings for report in self.reports.values())
        first = first.shared_with(others)
        own = {name: first.experiment[name] for name in _SHARED if name in first.experiment}
        if trained := re.match(r"Checkpoint\(trained=(['\"])(.*?)\1[,)]", str(own.get("model"))):
            own["model"] = trained[2]
        notes = tuple(note for note in first.notes if "--naive" not in note)
        return replace(first, experiment=own, notes=notes, bounds=None, disclosure={}, grants=None)

    def to_dict(self) -> dict[str, Any]:
        """Return cases, sentences on what was left out, and settings as JSON data."""
        return {**self.overview.to_dict(), "settings": self.settings.to_dict()}

    def verdicts(self) -> dict[str, str]:
        """Return the verdict on each case, for ``--fail-on``."""
        return {one.text: one.union.verdict for one in self.summary}

    def __str__(self) -> str:
        return "\n".join([*(text for _, text in sentences(self.overview)), *untested(self.overview)])

    def _repr_html_(self) -> str:
        """Return the result and a line for each case for a notebook, without an image."""
        return realism_notebook(self.overview)


def written(out: Path, found: Realism) -> Realism:
    """Write numbers and page, and return the result with its page."""
    folder, over = share_folder(out, REALISM), found.overview
    write(folder / "realism.json", json.dumps(found.to_dict(), indent=1).encode())
    lines = numbers(over)
    write(folder / "realism.csv", as_csv(list(lines[0]), lines).encode())
    return replace(found, pages=(write_realism_page(folder, found.settings.to_dict(), over),))
