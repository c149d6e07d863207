"""Target images beside guesses, for each attack and defense. They are private, for the one page that may hold them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medpfl.core.experiments.limits import plain_ascii
from medpfl.judging.types import Cell
from medpfl.reporting.figures.grid import draw_grid, png
from medpfl.reporting.figures.selection import cell_rows, examples
from medpfl.reporting.phrases import Cells
from medpfl.reporting.words import attacker, label, number, similarity

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from medpfl.core.types import Finding

    Picture = Callable[[Finding], tuple[np.ndarray, np.ndarray]]

__all__ = ["Pair", "Panel", "address", "draw_panel", "pair_of", "panels", "shrunk"]

_SHOWN = 320  # largest longer side in pixels, on the page
_SIDE = 224  # approximate longer side in pixels, in the file


@dataclass(frozen=True)
class Pair:
    """A target image and an attack's guess."""

    rank: str
    name: str
    scores: str
    classes: str
    truth: Image.Image
    guess: Image.Image

    @property
    def sources(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Both images as captions with ``data:`` addresses."""
        return ("target", address(self.truth)), ("guess", address(self.guess))


@dataclass(frozen=True)
class Panel:
    """The pairs for one attack and one defense."""

    attack: str
    defense: str
    pairs: tuple[Pair, ...]
    told: str = ""
    """``, naive`` or ``, adaptive`` where two panels would otherwise look alike."""

    @property
    def file(self) -> str:
        """A file name that does not depend on other cells."""
        digest = hashlib.sha256(f"{self.attack}\n{self.defense}{self.told}".encode()).hexdigest()[:6]
        return f"{_slug(self.attack)}--{_slug(self.defense)}--{digest}.png"


def panels(summary: Cells, rows: Sequence[Finding], picture: Picture) -> list[Panel]:
    """Return a panel for each cell that has rows.

    Args:
        summary: the cells, in order.
        rows: all rows of the run.
        picture: function that returns a row's target image and guess.
    """
    made = (_panel(cell, rows, picture) for cell in summary)
    return [panel for panel in made if panel.pairs]


def _panel(cell: Cell, rows: Iterable[Finding], picture: Picture) -> Panel:
    chosen = examples(cell_rows(cell, rows))
    told = attacker(cell).removeprefix(label(cell.attack))
    return Panel(cell.attack, cell.defense, tuple(pair_of(rank, row, picture) for rank, row in chosen), told)


def pair_of(rank: str, row: Finding, picture: Picture) -> Pair:
    """Return a row's target image and guess with captions, under a rank such as ``best guess``."""
    truth, guess = (shrunk(array) for array in picture(row))
    psnr = row.scores.get("psnr")
    scores = f"SSIM {similarity(row.scores['ssim'])}, PSNR {number(psnr, '.1f')} dB"
    named = f"class {row.label}" + ("" if row.label_guess is None else f", guessed {row.label_guess}")
    found = f", found by {label(by)}" if (by := plain_ascii(row.found_by)) else ""
    return Pair(rank, f"image {row.image}", scores, named + found, truth, guess)


def _slug(spec: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", label(spec)).strip("-.")[:40]


def shrunk(array: np.ndarray) -> Image.Image:
    """Return a uint8 array (H, W), (H, W, 1) or (H, W, 3) as an image, made smaller if it is too large for a page."""
    from PIL import Image

    image = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    if max(image.size) > _SHOWN:
        image.thumbnail((_SHOWN, _SHOWN))
    return image


def address(image: Image.Image, side: int = 0) -> str:
    """Return an image as a ``data:`` address, enlarged by a whole factor to about `side` pixels, if it is smaller.

    A printed page would smooth the pixels of a small image, and smoothing makes a guess look better.
    """
    factor = max(1, round(side / max(image.size)))
    if factor > 1:
        from PIL import Image

        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def draw_panel(panel: Panel) -> bytes:
    """Return the panel as a PNG for slides and papers: a row for each pair, the target on the left."""
    import numpy as np

    title = f"attack: {label(panel.attack)}{panel.told}\ndefense: {label(panel.defense)}\nprivate images: do not share"
    rows = [
        [
            (np.asarray(pair.truth), f"{pair.rank}, {pair.name}: target"),
            (np.asarray(pair.guess), f"guess: {pair.scores}\n{pair.classes}"),
        ]
        for pair in panel.pairs
    ]
    return draw_grid(title, rows, _SIDE)
