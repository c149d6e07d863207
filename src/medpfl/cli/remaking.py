"""Makes the pages of a run again. Imports the product that made the run, and no other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medpfl.core.messages import say

__all__ = ["again", "print_reproduction"]


def again(kind: str) -> tuple[Callable[[Path], Any], Callable[[Any, bool], object]]:
    """Return what makes the pages of a kind of run again, and what prints the result."""
    from medpfl.reporting import terminal

    if kind == "training":
        from medpfl.training.report import reread_training

        return reread_training, terminal.print_training
    if kind == "federation":
        from medpfl.federation.run import remake as remake_federation

        return remake_federation, terminal.print_federation
    if kind == "frontier":
        from medpfl.tradeoff.run import remake as remake_frontier

        return remake_frontier, terminal.print_frontier
    if kind == "realism":
        from medpfl.assumptions.run import remake as remake_realism

        return remake_realism, terminal.print_realism
    if kind == "reproduction":
        from medpfl.reproduction.run import remake

        return remake, print_reproduction
    from medpfl.auditing.report import reread

    return reread, terminal.print_audit


def print_reproduction(found: Any, quiet: bool = False) -> None:
    """Print what a reproduction could not run, and the files that it wrote."""
    from medpfl.core.messages import counted
    from medpfl.reporting.terminal import folders_line

    for gap in found.gaps:
        say(f"{'failed' if gap.failed else 'not run'}: {gap}", sys.stdout)
    for table in found.tables:
        if table.suffix == ".md":
            print(f"wrote {table} (also as .csv and .tex)")
    for page in found.legacy[:1]:
        print(f"wrote {page}: the effect of the notebooks' scores")
    if found.pictures:
        panels = counted(len(found.pictures), "panel")
        print(f"wrote {panels} of private images: {found.pictures[0].parent}")
    print(folders_line([*found.tables, *found.pictures]))
