"""Pictures in rows and columns with a line or two under each, as one PNG file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medpfl.reporting.figures.panels import png
from medpfl.reporting.figures.png import FAINT, INK, PAPER, font

if TYPE_CHECKING:
    import numpy as np

    Tile = tuple[np.ndarray, str]

__all__ = ["draw_grid"]

_SIDE, _GAP, _LINE, _LETTER = 128, 10, 15, 6.2


def draw_grid(title: str, rows: Sequence[Sequence[Tile]]) -> bytes:
    """The PNG of rows of pictures, uint8 (H, W) or (H, W, 3), each with its caption; each pixel stays a square."""
    from PIL import Image, ImageDraw

    columns, most = max(map(len, rows)), int(_SIDE / _LETTER)
    captions = [[textwrap.wrap(caption, most) for _, caption in row] for row in rows]
    below = _LINE * max(len(lines) for row in captions for lines in row) + _GAP
    width = columns * (_SIDE + _GAP) + _GAP
    head = textwrap.wrap(title, int(width / _LETTER))
    top = _GAP + _LINE * len(head) + _GAP
    sheet = Image.new("RGB", (width, top + len(rows) * (_SIDE + below)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), "\n".join(head), fill=INK, font=font(11))
    for i, (row, lines) in enumerate(zip(rows, captions, strict=True)):
        for j, ((array, _), caption) in enumerate(zip(row, lines, strict=True)):
            x, y = _GAP + j * (_SIDE + _GAP), top + i * (_SIDE + below)
            image = Image.fromarray(array).convert("RGB")
            sheet.paste(image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (x, y))
            draw.text((x, y + _SIDE + 2), "\n".join(caption), fill=FAINT, font=font(10))
    return png(sheet)
