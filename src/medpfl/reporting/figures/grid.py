"""A PNG file of pictures in rows and columns, each with a caption."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from PIL.ImageFont import FreeTypeFont

    Tile = tuple[np.ndarray, str]

__all__ = ["draw_grid", "png"]

_GAP, _EDGE = 16, 8
_INK, _MUTED = "#16202c", "#5a6775"


def draw_grid(title: str, rows: Sequence[Sequence[Tile]], side: int = 128) -> bytes:
    """Return a PNG file of picture rows under a title.

    Args:
        title: text above the pictures, wrapped at the sheet's width.
        rows: pictures of equal size, uint8 (H, W) or (H, W, 3), each with a caption, wrapped at the picture's width.
        side: approximate longer side of a picture in pixels. Pictures are enlarged by a whole factor and never
            smoothed, because smoothing would make a guess look better.
    """
    from PIL import Image, ImageDraw

    shape = rows[0][0][0].shape[:2]
    factor = max(1, round(side / max(shape)))
    height, width = (factor * pixels for pixels in shape)
    column = max(width, side) + _GAP
    large, small = _font(13), _font(11)
    head = _wrapped(title, large, max(map(len, rows)) * column - _GAP)
    captions = [[_wrapped(caption, small, column - _GAP) for _, caption in row] for row in rows]
    tops, y = [], _GAP + _height(head, large) + _GAP
    for row in captions:
        tops.append(y)
        y += height + _EDGE + max(_height(caption, small) for caption in row) + _GAP
    sheet = Image.new("RGB", (max(map(len, rows)) * column + _GAP, y), "white")
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((_GAP, _GAP), head, _INK, large)
    for top, row, texts in zip(tops, rows, captions, strict=True):
        for i, ((array, _), caption) in enumerate(zip(row, texts, strict=True)):
            left = _GAP + i * column
            sheet.paste(Image.fromarray(array.repeat(factor, 0).repeat(factor, 1)), (left, top))
            draw.multiline_text((left, top + height + _EDGE), caption, _MUTED, small)
    return png(sheet)


@cache
def _font(size: int) -> FreeTypeFont:
    """Return matplotlib's own font, which has the characters that Pillow's lacks, such as the minus sign."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _wrapped(text: str, font: FreeTypeFont, width: int) -> str:
    """Return a text broken into lines of at most `width` pixels, between words or, if a word is longer, inside it."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines.append("")
        for piece in (piece for word in paragraph.split() for piece in _pieces(word, font, width)):
            longer = f"{lines[-1]} {piece}".lstrip()
            if font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(piece)
    return "\n".join(lines)


def _pieces(word: str, font: FreeTypeFont, width: int) -> list[str]:
    if font.getlength(word) <= width:
        return [word]
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _height(text: str, font: FreeTypeFont) -> int:
    """Return the height of a text's lines in pixels, as Pillow spaces them."""
    from PIL import Image, ImageDraw

    return ceil(ImageDraw.Draw(Image.new("1", (1, 1))).multiline_textbbox((0, 0), text, font)[3])


def png(image: Image.Image) -> bytes:
    """Return a PNG file's bytes, with pixels and no metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
