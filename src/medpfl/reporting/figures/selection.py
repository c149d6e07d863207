"""The rows behind a cell, and the examples shown from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from medpfl.judging.types import Cell
from medpfl.reporting.words import known

if TYPE_CHECKING:
    from medpfl.core.types import Finding

__all__ = ["cell_rows", "examples"]


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
