"""The paper's picture panels: target image, guess, and the guess under each defense strength. Private images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from medpfl.auditing.store import Store, stored
from medpfl.core.atomic_files import PRIVATE, write
from medpfl.core.types import Finding
from medpfl.core.verdicts import UNDEFENDED
from medpfl.judging.types import Cell
from medpfl.reporting.figures.grid import draw_grid
from medpfl.reporting.figures.selection import cell_rows, examples
from medpfl.reporting.words import label, similarity
from medpfl.runs.directory import private_folder
from medpfl.runs.jobs import job_of

__all__ = ["write_pictures"]


def write_pictures(run: Path, out: Path, title: str) -> list[Path]:
    """Write a run's panels: the worst, median and best image by the undefended guess.

    Without a defense there is one panel, otherwise one for naive and one for adaptive attacks.

    Args:
        run: the run directory.
        out: the reproduction's directory; the PNG files go into ``OUT/private/panels``.
        title: text above the pictures.
    """
    store = stored(run)
    rows = [row for row in store.rows() if not row.control and store.pictured(job_of(row))]
    if not rows:
        return []
    defended = [row for row in rows if row.defense != UNDEFENDED]
    kinds = {False: "naive", True: "adaptive"}
    wanted = {kinds[knows]: knows for knows in sorted({row.knows_defense for row in defended})} or {"": None}
    made = []
    for kind, knows in wanted.items():
        shown = [row for row in rows if row.defense == UNDEFENDED or row.knows_defense is knows]
        lines = [list(_line(store, shown, rank, row)) for rank, row in _chosen(shown)]
        words = ", ".join(filter(None, [title, f"attack {kind}" if kind else ""]))
        name = "-".join(filter(None, [run.name, kind]))
        made.append(
            write(private_folder(out, "panels") / f"{name}.png", draw_grid(words, lines), PRIVATE)
        ) if lines else None
    return made


def _chosen(rows: Sequence[Finding]) -> list[tuple[str, Finding]]:
    undefended = [row for row in rows if row.defense == UNDEFENDED]
    cell = Cell(attack=rows[0].attack, defense=UNDEFENDED)
    return examples(cell_rows(cell, undefended))


def _line(store: Store, rows: Sequence[Finding], rank: str, plain: Finding) -> Iterator[tuple]:
    """Yield the target image, the guess without a defense, and the guess under each defense."""
    truth, guess = store.picture(plain)
    yield truth, f"target ({rank})"
    yield guess, f"no defense: {_score(plain)}"
    for row in rows:
        same = (row.image, row.draw, row.attack) == (plain.image, plain.draw, plain.attack)
        if same and row.defense != UNDEFENDED:
            yield store.picture(row)[1], f"{label(row.defense).replace('(', ' (')}: {_score(row)}"


def _score(row: Finding) -> str:
    """Format the SSIM with a no-break space."""
    return f"SSIM\u00a0{similarity(row.scores['ssim'])}"
