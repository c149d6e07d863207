"""Images on the private page: one image as the proof, and every image with each attack's guess."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from medpfl.core.verdicts import UNDEFENDED
from medpfl.judging.types import Cell
from medpfl.reporting.figures.panels import Pair, address, pair_of, shrunk
from medpfl.reporting.figures.selection import cell_rows
from medpfl.reporting.phrases import Cells
from medpfl.reporting.words import attacker, label, similarity

if TYPE_CHECKING:
    import numpy as np

    from medpfl.core.types import Finding

    Picture = Callable[[Finding], tuple[np.ndarray, np.ndarray]]

__all__ = ["Gallery", "Proof", "Shot", "galleries", "proof"]

_PAIRS = 3000
"""Maximum number of pairs of images on a page, so that a browser can open it."""
_SIDE = 320
"""Approximate longer side in pixels of an image in the proof."""
_DEFENSES = 7
"""Maximum number of defenses in the proof."""


class Shot(NamedTuple):
    """An image in the proof: its caption, small print, address, and text for those who cannot see it."""

    caption: str
    note: str
    source: str
    spoken: str


class Proof(NamedTuple):
    """The image that was exposed most: the target, and the best guess under each defense."""

    name: str
    shots: tuple[Shot, ...]
    left_out: int


class Gallery(NamedTuple):
    """All images under one attack and one defense, the most exposed first.

    Attributes:
        attack, defense: specs.
        told: ``, naive`` or ``, adaptive`` where two galleries would otherwise look alike.
        verdict: the cell's verdict.
        pairs: target images with guesses.
        left_out: number of images that are not shown.
    """

    attack: str
    defense: str
    told: str
    verdict: str
    pairs: tuple[Pair, ...]
    left_out: int


def galleries(summary: Cells, rows: Sequence[Finding], picture: Picture) -> list[Gallery]:
    """Return a gallery for each cell that has rows.

    Args:
        summary: the cells, in order.
        rows: all rows of the run.
        picture: function that returns a row's target image and guess.
    """
    ranked = [(cell, cell_rows(cell, rows)[::-1]) for cell in summary]
    shown = [(cell, own) for cell, own in ranked if own]
    most = max(3, _PAIRS // max(1, len(shown)))
    return [_gallery(cell, own, most, picture) for cell, own in shown]


def _gallery(cell: Cell, ranked: Sequence[Finding], most: int, picture: Picture) -> Gallery:
    told = attacker(cell).removeprefix(label(cell.attack))
    pairs = tuple(pair_of("", row, picture) for row in ranked[:most])
    return Gallery(cell.attack, cell.defense, told, cell.verdict, pairs, max(0, len(ranked) - most))


def proof(summary: Cells, rows: Sequence[Finding], picture: Picture) -> Proof | None:
    """Return the proof, or ``None`` if no row has a picture.

    The image is the one whose best guesses have the highest SSIM, summed over defenses.
    """
    best: dict[str, dict[str, Finding]] = {}
    for cell in summary:
        for row in cell_rows(cell, rows):
            known = best.setdefault(row.image, {}).get(cell.defense)
            if known is None or _ssim(row) > _ssim(known):
                best[row.image][cell.defense] = row
    if not best:
        return None
    name = max(sorted(best), key=lambda image: (len(best[image]), sum(_ssim(row) for row in best[image].values())))
    own = sorted(best[name].values(), key=lambda row: row.defense != UNDEFENDED)
    first = picture(own[0])[0]
    shots = [Shot("Patient's image", "not sent", address(shrunk(first), _SIDE), f"target image {name}")]
    for row in own[:_DEFENSES]:
        where = "without a defense" if row.defense == UNDEFENDED else f"with {label(row.defense)}"
        guess = address(shrunk(picture(row)[1]), _SIDE)
        told = f"{label(row.attack)}, SSIM {similarity(row.scores['ssim'])}"
        shots.append(Shot(f"Best guess {where}", told, guess, f"best guess at image {name}, {where}"))
    return Proof(name, tuple(shots), max(0, len(own) - _DEFENSES))


def _ssim(row: Finding) -> float:
    return row.scores["ssim"] or 0.0
