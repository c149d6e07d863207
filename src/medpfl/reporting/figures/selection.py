"""The rows behind a cell, and the examples and certificates shown from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from medpfl.core.experiments.limits import plain_ascii
from medpfl.core.messages import counted
from medpfl.core.verdicts import INCONCLUSIVE, RANDOM_UPDATE
from medpfl.judging.types import Cell
from medpfl.reporting.words import known, label

if TYPE_CHECKING:
    from medpfl.core.types import Finding

__all__ = ["Certified", "cell_rows", "certified", "examples", "finders", "unread", "unread_lines"]

_SHOWN = 3
"""Maximum number of different certificates, reasons, and attacks in an ensemble, shown for a cell."""


class Certified(NamedTuple):
    """A cell's certificates.

    Attributes:
        texts: up to three different texts, in the order of the updates; empty if the attack gives none.
        note: how many updates have one, and how many random updates.
    """

    texts: tuple[str, ...] = ()
    note: str = ""


def cell_rows(cell: Cell, rows: Iterable[Finding]) -> list[Finding]:
    """Return a cell's scored rows, worst guess first, without controls and without images whose update is zero."""
    own = [
        row
        for row in rows
        if (row.attack, row.defense, row.control) == (cell.attack, cell.defense, "")
        and cell.knows_defense in (None, row.knows_defense)
        and known(row.scores.get("ssim"))
        and "zero-gradient" not in row.flags
    ]
    return sorted(own, key=lambda row: (row.scores["ssim"], row.image, row.draw))


def examples(ranked: Sequence[Finding]) -> list[tuple[str, Finding]]:
    """Return the worst, the median and the best guess, or fewer if there are fewer rows."""
    if len(ranked) < 2:
        return [("only guess", row) for row in ranked]
    ends = [("worst guess", ranked[0]), ("best guess", ranked[-1])]
    return ends if len(ranked) == 2 else [ends[0], ("median guess", ranked[(len(ranked) - 1) // 2]), ends[1]]


def certified(cell: Cell, rows: Sequence[Finding]) -> Certified:
    """Return a cell's certificates.

    Args:
        cell: the cell.
        rows: all rows of the run. Those of random updates show what the attack says where there is nothing to read.
    """
    own = _by_update("certificate", cell_rows(cell, rows))
    texts = [*dict.fromkeys(text for text in own if text)]
    if not texts:
        return Certified()
    random = _by_update(
        "certificate",
        (
            row
            for row in rows
            if (row.attack, row.control) == (cell.attack, RANDOM_UPDATE) and "zero-gradient" not in row.flags
        ),
    )
    note = f"The attack gave one for {_share(own)}"
    if random:
        note += f", and for {_share(random, 'random update')}"
        note += ", which hold no image, so do not rely on it" if any(random) else ""
    more = len(texts) - _SHOWN
    beyond = f" See findings.jsonl for {counted(more, 'further text')}." if more > 0 else ""
    return Certified(tuple(texts[:_SHOWN]), f"{note}.{beyond}")


def finders(cell: Cell, rows: Sequence[Finding]) -> str:
    """Return which attacks found how many of a cell's guesses; ``""`` if the cell's attack runs no others."""
    told = Counter(label(name) for row in cell_rows(cell, rows) if (name := plain_ascii(row.found_by).strip()))
    return "; ".join(f"{name} ({counted(count, 'image')})" for name, count in told.most_common(_SHOWN))


def unread(cell: Cell, rows: Iterable[Finding]) -> str:
    """Return the share of a cell's updates that no analytic attack read, and why; ``""`` if no reason is stated."""
    told = _by_update("unread", cell_rows(cell, rows))
    reasons = [reason for reason, _ in Counter(filter(None, told)).most_common()]
    more = "; ..." if len(reasons) > _SHOWN else ""
    return f"{_share(told)} ({'; '.join(reasons[:_SHOWN])}{more})" if reasons else ""


def unread_lines(cells: Iterable[Cell], rows: Sequence[Finding]) -> list[str]:
    """Return a line for each attack with unread updates, where the verdict on the defense is inconclusive."""
    unsure = [cell for cell in cells if cell.union.verdict == INCONCLUSIVE]
    told = [(f"{label(cell.attack)}, {label(cell.defense)}", unread(cell, rows)) for cell in unsure]
    return [*dict.fromkeys(f"{name}: without a search, nothing was read of {why}" for name, why in told if why)]


def _by_update(field: str, rows: Iterable[Finding]) -> list[str]:
    """Return a text of each update, in the order of the run; ``""`` for none."""
    found = {(row.draw, row.stack, row.victim): plain_ascii(getattr(row, field)).strip() for row in rows}
    return [found[place] for place in sorted(found)]


def _share(texts: Sequence[str], noun: str = "update") -> str:
    return f"{sum(map(bool, texts))} of {counted(len(texts), noun)}"
