"""Which rows belong to a cell of the summary, and which of them are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from medpfl.judging.types import Cell
from medpfl.reporting.words import known

if TYPE_CHECKING:
    from medpfl.core.types import Finding

__all__ = ["cell_rows", "examples"]


def cell_rows(cell: Cell, rows: Iterable[Finding]) -> list[Finding]:
    """The scored rows of a cell from the worst guess to the best: no controls, no image without an update."""
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
    """The worst, the median and the best guess; fewer where there are fewer rows."""
    if len(ranked) < 2:
        return [("only guess", row) for row in ranked]
    ends = [("worst guess", ranked[0]), ("best guess", ranked[-1])]
    return ends if len(ranked) == 2 else [ends[0], ("median guess", ranked[(len(ranked) - 1) // 2]), ends[1]]
