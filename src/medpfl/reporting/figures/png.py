"""A panel as a PNG file, for slides and papers that may hold private images."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from medpfl.reporting.figures.panels import Pair, Panel, png
from medpfl.reporting.words import label, shorten

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_panel", "font"]

SIDE = 224  # about; small images are enlarged by a whole factor
GAP, LINE = 16, 22
INK, FAINT, PAPER = "#16202c", "#5a6775", "#ffffff"


def draw_panel(panel: Panel) -> bytes:
    """The panel as a PNG: a row for each pair, truth on the left."""
    from PIL import Image, ImageDraw

    rows = [(pair, enlarge(pair.truth), enlarge(pair.guess)) for pair in panel.pairs]
    tile = max(SIDE, *(image.width for _, *images in rows for image in images))
    title = _title(panel, 2 * tile + GAP)
    height = GAP + 6 + LINE * len(title) + sum(truth.height + 3 * LINE + GAP for _, truth, _ in rows)
    sheet = Image.new("RGB", (2 * tile + 3 * GAP, height), PAPER)
    draw, y = ImageDraw.Draw(sheet), GAP
    for line in title:
        draw.text((GAP, y), line, fill=INK if line != title[-1] else FAINT, font=font(13))
        y += LINE
    y += 6
    for pair, truth, guess in rows:
        sheet.paste(truth.convert("RGB"), (GAP, y))
        sheet.paste(guess.convert("RGB"), (2 * GAP + tile, y))
        y += truth.height + 4
        _caption(draw, pair, tile, y)
        y += 3 * LINE + GAP - 4
    return png(sheet)


def enlarge(image: Image.Image) -> Image.Image:
    """Small images by a whole factor, each pixel a square: smoothing would look like a better guess."""
    from PIL import Image

    factor = max(1, round(SIDE / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _title(panel: Panel, width: int) -> list[str]:
    specs = [f"attack: {label(panel.attack)}{panel.told}", f"defense: {label(panel.defense)}"]
    wrapped = [part for spec in specs for part in textwrap.wrap(spec, max(width // 8, 20))]
    return [*wrapped, "private images: do not share"]


def _caption(draw: ImageDraw.ImageDraw, pair: Pair, tile: int, y: int) -> None:
    most = (2 * tile + GAP) // 7
    lines = (f"{pair.rank}, {pair.name} (left: truth, right: guess)", pair.scores, pair.classes)
    for i, line in enumerate(lines):
        draw.text((GAP, y + i * LINE * 0.85), shorten(line, most), fill=INK if i == 0 else FAINT, font=font(12))


def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans in so many pixels."""
    import matplotlib
    from PIL import ImageFont

    # Matplotlib's own copy of DejaVu: on every machine, and with most of the world's letters.
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
