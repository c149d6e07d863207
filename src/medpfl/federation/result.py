"""A federation's result: its records' audits, their numbers by site and round, and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from medpfl.auditing.report import Report
from medpfl.core.atomic_files import PRIVATE, write
from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.messages import PRIVATE_FOLDER, SHARE_FOLDER
from medpfl.core.verdicts import UNDEFENDED
from medpfl.federation.pooling import pooled
from medpfl.judging.summary import Context, summarize
from medpfl.judging.types import Cell
from medpfl.reporting.federation import Overview, RecordCells, sentences, verdicts, write_federation_page
from medpfl.runs.directory import RUNS, Kind, lines, private_folder, share_folder

__all__ = ["FEDERATION", "Audited", "Federation", "written"]

FEDERATION = Kind(
    "federation",
    1,
    ("federation.jsonl", "federation.json", "federation.html", "federation.pdf", "records/*.html"),
    ("federation-with-images.html", "federation-with-images.pdf"),
    rows=False,
)


class Audited(NamedTuple):
    """One record's audit.

    Attributes:
        site: name under which the site is shown.
        round: the federation's round; ``None`` if the record does not state it.
        name: name of its run directory and page.
        report: the audit's report.
    """

    site: str
    round: int | None
    name: str
    report: Report


@dataclass(frozen=True, eq=False)
class Federation:
    """The audits of a federation's records.

    Attributes:
        records: each record's audit, in the order of sites and rounds.
        without_truth: records that were not audited for lack of a truth.
        masked: number of masked messages, which cannot be attacked alone.
        clients: number of clients whose updates are averaged in each record.
        pages: the pages written; each record's audit has its own as well.
    """

    records: tuple[Audited, ...]
    without_truth: tuple[str, ...] = ()
    masked: int = 0
    clients: int = 1
    pages: tuple[Path, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The findings from all records, each with its ``site`` and ``round``."""
        return [
            {"site": one.site, "round": one.round, **row.to_dict()} for one in self.records for row in one.report.rows
        ]

    @cached_property
    def summary(self) -> list[Cell]:
        """The cells of all records together; an image counts once, with its rounds as attempts."""
        return self._judged(self.records)

    @cached_property
    def sites(self) -> dict[str, list[Cell]]:
        """The same for the records of each site."""
        names = dict.fromkeys(one.site for one in self.records)
        return {name: self._judged([one for one in self.records if one.site == name]) for name in names}

    @cached_property
    def rounds(self) -> dict[int | None, list[Cell]]:
        """The same for the records of each round."""
        numbers = sorted({one.round for one in self.records}, key=lambda n: (n is None, n or 0))
        return {n: self._judged([one for one in self.records if one.round == n]) for n in numbers}

    @property
    def overview(self) -> Overview:
        """Everything that the page and the terminal show."""
        told = [
            RecordCells(
                one.site, one.round, one.name, (one.report.settings.record or {}).get("checked", ""), one.report.summary
            )
            for one in self.records
        ]
        return Overview(told, self.summary, self.sites, self.rounds, self.without_truth, self.masked, self.clients)

    @property
    def settings(self) -> Settings:
        """The settings that all records share, with the number of all their images."""
        every = [one.report.settings for one in self.records]
        first = every[0].shared_with(every[1:])
        images = len({row.image for one in self.records for row in one.report.rows})
        own = {name: first.experiment[name] for name in ("attacks", "memory_gib") if name in first.experiment}
        models, plans = (dict.fromkeys(str(one.experiment.get(n)) for one in every) for n in ("model", "plan"))
        experiment = {
            "model": next(iter(models)) if len(models) == 1 else [*models],
            **own,
            "records": len(self.records),
            "sites": len(self.sites),
            "images": images,
            "plans": [*plans],
        }
        bare = replace(first, experiment=experiment, data={}, notes=(), bounds=None, disclosure={})
        return replace(bare, record=None if first.record is None else {"defense": first.record.get("defense")})

    def verdicts(self) -> dict[str, str]:
        """Return the verdicts for ``--fail-on``: all records together, each record that leaks, and what is missing."""
        return verdicts(self.overview)

    def _judged(self, records: Sequence[Audited]) -> list[Cell]:
        return summarize(pooled([one.report.rows for one in _by_round(records)]), _context(records))

    def __str__(self) -> str:
        return "\n".join(text for _, text in sentences(self.overview))


def _by_round(records: Sequence[Audited]) -> list[Audited]:
    return sorted(records, key=lambda one: (one.round is None, one.round or 0))


def _context(records: Sequence[Audited]) -> Context:
    """Return the facts behind the verdict on several records: a doubt about one holds for all."""
    every = [Context.of(one.report.settings) for one in records]
    disclosure: dict[str, Mapping[str, Any]] = {}
    for one in every:
        for spec, told in one.disclosure.items():
            known = disclosure.get(spec, {"changes": False, "silent": False, "problems": []})
            disclosure[spec] = {
                "changes": known["changes"] or told.get("changes", True),
                "silent": known["silent"] or told.get("silent", False),
                "problems": [*known["problems"], *told.get("problems", ())],
            }
    server_only = tuple(spec for spec in every[0].server_only if all(spec in one.server_only for one in every))
    bare = (UNDEFENDED, *server_only)
    return replace(
        every[0],
        disclosure=disclosure,
        server_only=server_only,
        server_side=tuple(dict.fromkeys(spec for one in every for spec in one.server_side)),
        # What acts at one client acts in the pool: an attack that is not told of it is not qualified there.
        record=next((one.record for one in every if _acting(one.record) not in bare), every[0].record),
    )


def _acting(record: Json | None) -> str:
    return (record or {}).get("defense", UNDEFENDED)


def written(out: Path, found: Federation) -> Federation:
    """Write rows, summary and pages, and return the result with its pages.

    The shared page links to copies of the records' pages without images, so that the folder can be shared as it is.
    """
    folder, over, settings = share_folder(out, FEDERATION), found.overview, found.settings.to_dict()
    write(folder / "federation.jsonl", lines(found.rows))
    write(folder / "federation.json", json.dumps(over.to_dict(), indent=1).encode())
    (folder / "records").mkdir(exist_ok=True)
    for old in (folder / "records").glob("*.html"):
        old.unlink()
    for one in found.records:
        write(
            folder / "records" / f"{one.name}.html", (out / RUNS / one.name / SHARE_FOLDER / "report.html").read_bytes()
        )
    pages = [write_federation_page(folder / "federation.html", settings, over, lambda name: f"records/{name}.html")]
    shown = f"{PRIVATE_FOLDER}/report-with-images.html"
    if all((out / RUNS / one.name / shown).is_file() for one in found.records):
        page = private_folder(out) / "federation-with-images.html"
        link = f"../{RUNS}/{{}}/{shown}".format
        pages.append(write_federation_page(page, settings, over, link, images=True, mode=PRIVATE))
    return replace(found, pages=tuple(pages))
