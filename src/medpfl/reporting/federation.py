"""A whole federation: sentences, tables and a page, from the cells of each record's audit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from medpfl.core.atomic_files import SHARED, write
from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.messages import counted
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, RECORDED, UNDEFENDED
from medpfl.judging.summary import by_defense
from medpfl.judging.types import Cell, Union
from medpfl.reporting.phrases import Cells, bounded, by, counts, extent, hits, in_number, reason
from medpfl.reporting.tables import SHORT
from medpfl.reporting.words import DASH, brief, percent, percents

if TYPE_CHECKING:
    from rich.table import Table

    from medpfl.reporting.page.advice import Advice

__all__ = ["Overview", "RecordCells", "federation_table", "sentences", "state", "verdicts", "write_federation_page"]

_EACH = ("Images", "Reconstructed", "Re-identified", "Verdict")
_TAG = re.compile(r"-([0-9a-f]{8})$")
"""The end of a record's name if its site and round are those of another record as well."""
_SAFE = "A failed attack does not show that the updates are safe."


class RecordCells(NamedTuple):
    """The audit of one record.

    Attributes:
        site: name under which the site is shown.
        round: the federation's round; ``None`` if unknown.
        name: name of the record's page and run directory.
        checked: result of the check before the attacks: ``right``, ``unverified``, or ``defense``.
        cells: the audit's cells.
    """

    site: str
    round: int | None
    name: str
    checked: str
    cells: Cells


@dataclass(frozen=True)
class Overview:
    """The audits of a federation's records.

    Attributes:
        records: each record's audit, in the order of sites and rounds.
        summary: cells of all records together; an image counts once.
        sites, rounds: the same for the records of each site, and of each round.
        without_truth: names of the records that have no truth, so they were neither verified nor attacked.
        masked: number of masked messages, which cannot be attacked alone.
        clients: number of clients whose updates are averaged in each record.
    """

    records: Sequence[RecordCells]
    summary: Cells
    sites: Mapping[str, Cells]
    rounds: Mapping[int | None, Cells]
    without_truth: Sequence[str] = ()
    masked: int = 0
    clients: int = 1

    def site_of(self, one: RecordCells, word: str = "") -> str:
        """Return a record's site, with the record's tag after a word if another record has the same site and round."""
        found = _TAG.search(one.name) if self._alike[one.site, one.round] > 1 else None
        return f"{one.site} ({word}{found[1]})" if found else one.site

    def named(self, one: RecordCells) -> str:
        """Return a record's site and round."""
        site = self.site_of(one, "record ")
        return site if one.round is None else f"{site} in round {one.round}"

    @property
    def mixed(self) -> list[str]:
        """The sites with several records of one round, although each holds a single client's update."""
        same = (site for (site, number), count in self._alike.items() if number is not None and count > 1)
        return sorted(dict.fromkeys(same)) if self.clients == 1 else []

    @property
    def _alike(self) -> Counter[tuple[str, int | None]]:
        return Counter((one.site, one.round) for one in self.records)

    def to_dict(self) -> Json:
        """Return the entry for ``federation.json``."""
        return {
            "verdict": state(self),
            "records": [
                {
                    "site": one.site,
                    "round": one.round,
                    "name": one.name,
                    "checked": one.checked,
                    "cells": _flat(one.cells),
                }
                for one in self.records
            ],
            "summary": _flat(self.summary),
            "sites": {site: _flat(cells) for site, cells in self.sites.items()},
            "rounds": [{"round": number, "cells": _flat(cells)} for number, cells in self.rounds.items()],
            "without_truth": list(self.without_truth),
            "masked": self.masked,
            "clients": self.clients,
        }


def _flat(cells: Cells) -> list[Json]:
    return [cell.to_dict() for cell in cells]


def verdicts(over: Overview) -> dict[str, str]:
    """Return the verdicts on all records together, on each record that leaks by itself, and on what was not audited."""
    found = {f"all records: {name}": verdict for name, verdict in by_defense(over.summary).items()}
    found |= {one.name: LEAKS for one in _leaking(over)}
    return found | ({"records without truth": INCONCLUSIVE} if over.without_truth else {})


def state(over: Overview) -> str:
    """Return the worst of the `verdicts`."""
    told = verdicts(over).values()
    return next((verdict for verdict in (LEAKS, INCONCLUSIVE, NO_LEAK) if verdict in told), INCONCLUSIVE)


def _leaking(over: Overview) -> list[RecordCells]:
    return [one for one in over.records if LEAKS in by_defense(one.cells).values()]


def sentences(over: Overview) -> list[tuple[str | None, str]]:
    """Return the verdict in sentences, each with its outcome if it states one: all records, the worst one, the rest.

    The first one has the outcome of `state`.
    """
    whole, union, opening = state(over), _union(over.summary), f"From {_records(over)}"
    made: list[tuple[str | None, str]]
    if whole == LEAKS != union.verdict:
        worst = max(_leaking(over), key=lambda one: extent(_union(one.cells)))
        first = f"{opening}, {_alone(over)} leak by themselves. Worst: from {over.named(worst)}, these attacks"
        made = [(whole, f"{first} {counts(_union(worst.cells))}."), (union.verdict, f"All together: {_pooled(over)}")]
    elif whole != union.verdict:
        gone = counted(len(over.without_truth), "further record")
        made = [(whole, f"{opening}, {_pooled(over)} The whole is inconclusive, because {gone} could not be attacked.")]
    else:
        made = [(whole, f"{opening}, {_pooled(over)}")]
    if (union.verdict == whole or whole != LEAKS) and (worst := _worst(over)):
        made.append(worst)
    made.append((None, f"Attacks: {', '.join(_attacks(over))}."))
    bare = [cell for cell in over.summary if cell.defense == UNDEFENDED]
    if bare:
        made.append((None, f"The same trainings without a defense: these attacks {counts(bare[0].union)}."))
    made += [(None, text) for text in _missing(over)]
    return [(outcome, in_number(text, over.summary)) for outcome, text in made]


def _pooled(over: Overview) -> str:
    """Return the result of all records together, as the rest of a sentence, and further ones."""
    own, union = _recorded(over.summary), _union(over.summary)
    if union.verdict == NO_LEAK:
        return f"no leak was found: {bounded(union)}. {_SAFE}"
    if union.verdict == INCONCLUSIVE:
        why = reason(own, recorded=True)
        return f"these attacks {counts(union)}. For all records together, this is inconclusive: {why}."
    return f"an attacker {counts(union)} with {by(_without_attempts(own))}."


def _records(over: Overview) -> str:
    if over.clients > 1:
        return f"{counted(len(over.records), 'recorded mean')} over {over.clients} clients' updates"
    return f"{counted(len(over.records), 'recorded update')} of {counted(len(over.sites), 'site')}"


def _worst(over: Overview) -> tuple[str, str] | None:
    """Return the record from which the most was reconstructed, and how many leak by themselves."""
    if len(over.records) < 2:
        return None
    worst = max(over.records, key=lambda one: extent(_union(one.cells)))
    union = _union(worst.cells)
    if not _leaking(over) and not hits(union.asr, union.images) and not hits(union.identified, union.images):
        return None
    return (
        union.verdict,
        f"Worst: from {over.named(worst)}, these attacks {counts(union)}. Leaking by themselves: {_alone(over)}.",
    )


def _alone(over: Overview) -> str:
    """Return how many records, and how many sites, leak by themselves."""
    sites = sum(LEAKS in by_defense(cells).values() for cells in over.sites.values())
    of = f" and {sites} of {counted(len(over.sites), 'site')}" if len(over.sites) > 1 else ""
    return f"{len(_leaking(over))} of {counted(len(over.records), 'record')}{of}"


def _without_attempts(cells: Cells) -> list[Cell]:
    return [replace(cell, attack=re.sub(r", attempt \d+$", "", cell.attack)) for cell in cells]


def _attacks(over: Overview) -> list[str]:
    """Return the attacks' names, which a reader cannot see elsewhere on the page unless the settings are unfolded."""
    return list(brief(dict.fromkeys(cell.attack for cell in _without_attempts(over.summary)), 80).values())


def _advice(settings: Json, over: Overview) -> Advice:
    from medpfl.reporting.page.advice import of_federation

    own = _recorded(over.summary)
    undecided = own if _union(own).verdict == INCONCLUSIVE else ()
    shared = Settings.of({**settings, "record": settings.get("record") or {}})
    return of_federation(state(over), bool(over.without_truth), undecided, shared)


def _missing(over: Overview) -> list[str]:
    lines = []
    if gone := over.without_truth:
        named = ", ".join(gone[:10]) + (f" and {len(gone) - 10} more" if len(gone) > 10 else "")
        lines.append(
            f"Not audited: {counted(len(gone), 'record')} without truth ({named}). Nothing about them was verified. "
            "Record with truth=True, or name a folder with the images of each site with --truth."
        )
    if over.masked:
        lines.append(
            f"Not audited: {counted(over.masked, 'masked message')} of secure aggregation. Alone, each is random "
            "numbers. The server learns the sum; docs/federation.md shows how to record and audit it."
        )
    if mixed := over.mixed:
        lines.append(
            f"{' and '.join(mixed)}: there are several records of the same round. If they come from several clients, "
            "record each client in a folder of its own (updates/{site}, see docs/federation.md)."
        )
    open_ = sum(one.checked == "unverified" for one in over.records)
    if open_:
        lines.append(
            f"All records were checked before the attacks; {open_} could not be verified in full, see the pages of the "
            "records."
        )
    return lines


def _recorded(cells: Cells) -> list[Cell]:
    return [cell for cell in cells if cell.defense == RECORDED] or list(cells)


def _union(cells: Cells) -> Union:
    return _recorded(cells)[0].union


def _entries(cells: Cells) -> list[tuple[str, str]]:
    """Return a line's numbers, each with its small print."""
    union = _union(cells)
    told = f"{percents(union.identified.low, union.identified.high, union.tolerance)}"
    if union.identified_floor is not None:
        told += f"; {percent(union.identified_floor)} without the update"
    return [
        (str(union.images), f"in {counted(union.updates, 'independent update')}" if union.updates > 1 else ""),
        (percent(union.asr.value), percents(union.asr.low, union.asr.high, union.tolerance)),
        (percent(union.identified.value), "" if union.identified.value is None else told),
        (union.verdict, ""),
    ]


def federation_table(over: Overview) -> Table:
    """Return the records as a table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("Site", "Round", *_EACH):
        table.add_column(name, no_wrap=True, justify="left" if name in ("Site", "Verdict") else "right")
    for one in over.records:
        *numbers, (verdict, _) = _entries(one.cells)
        shown = [value for value, _ in numbers]
        table.add_row(*map(Text, (over.site_of(one), _round(one.round), *shown, SHORT.get(verdict, verdict))))
    return table


def _round(number: int | None) -> str:
    return DASH if number is None else str(number)


def write_federation_page(
    path: Path, settings: Json, over: Overview, link: Callable[[str], str], *, images: bool = False, mode: int = SHARED
) -> Path:
    """Write the page; it holds no image itself.

    Args:
        path: the file.
        settings: settings that all records share.
        over: the audits.
        link: function that returns the address of a record's page from the record's name.
        images: True if the records' pages show private images.
        mode: the file's mode.
    """
    from medpfl.reporting.page.rendering import rendered

    check = {"right": "matches the training", "unverified": "not in full", "defense": "fits the stated defense"}
    page = rendered(
        "federation",
        settings,
        images=images,
        sentences=sentences(over),
        advice=_advice(settings, over),
        averaged=over.clients > 1,
        columns=("Site", "Round", *_EACH, "Verified"),
        rows=[
            (
                link(one.name),
                [
                    (over.site_of(one), ""),
                    (_round(one.round), ""),
                    *_entries(one.cells),
                    (check.get(one.checked, DASH), ""),
                ],
            )
            for one in over.records
        ],
        groups=[
            ("Site", [[(site, ""), *_entries(cells)] for site, cells in over.sites.items()]),
            ("Round", [[(_round(number), ""), *_entries(cells)] for number, cells in over.rounds.items()]),
        ],
        each=_EACH,
    )
    return write(path, page, mode)
