"""A PNG file of pictures in rows and columns, each with a caption."""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.text import Text
    from PIL import Image

    Tile = tuple[np.ndarray, str]

__all__ = ["draw_grid", "png"]

_GAP, _EDGE, _DPI = 16, 8, 100
_HEAD = {"color": "#16202c", "fontsize": 9, "va": "top", "wrap": True, "parse_math": False}
_CAPTION = {**_HEAD, "color": "#5a6775", "fontsize": 8}


def draw_grid(title: str, rows: Sequence[Sequence[Tile]], side: int = 128) -> bytes:
    """Return a PNG file of picture rows under a title.

    Args:
        title: text above the pictures, wrapped at the sheet's width.
        rows: pictures of equal size, uint8 (H, W) or (H, W, 3), each with a caption, wrapped at the picture's width.
        side: approximate longer side of a picture in pixels. Pictures are enlarged by a whole factor and never
            smoothed, because smoothing would make a guess look better.
    """
    import numpy as np
    from PIL import Image

    shape = rows[0][0][0].shape[:2]
    factor = max(1, round(side / max(shape)))
    height, width = (factor * pixels for pixels in shape)
    column = max(width, side) + _GAP
    words, tops = _words(title, [[caption for _, caption in row] for row in rows], height, column)
    sheet = np.pad(words, ((0, 0), (_EDGE, _EDGE), (0, 0)), constant_values=255)
    for top, row in zip(tops, rows, strict=True):
        for i, (array, _) in enumerate(row):
            squares = array.reshape(*shape, -1).repeat(factor, 0).repeat(factor, 1)
            sheet[top : top + height, _GAP + i * column :][:, :width] = squares
    return png(Image.fromarray(sheet))


def _words(title: str, rows: Sequence[Sequence[str]], height: int, column: int) -> tuple[np.ndarray, list[int]]:
    """Return a sheet with the title and captions only, and the top of each picture row."""
    import matplotlib.style
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    number, tops = max(map(len, rows)), []
    # No text is higher than 100 pixels plus 2 per letter; the unused space at the bottom is cut off.
    y = tall = 100 + len(rows) * (height + 100) + 2 * (len(title) + sum(max(map(len, row)) for row in rows))
    with matplotlib.style.context("default"):
        figure = Figure((number * column / _DPI, tall / _DPI), _DPI, facecolor="white")
        y -= _GAP + _height(figure.text(_EDGE / column / number, 1 - _GAP / tall, title, **_HEAD))
        parts = figure.subfigures(1, number, squeeze=False)[0]  # matplotlib wraps a text at the border of its subfigure
        for row in rows:
            tops.append(tall - y + _EDGE)
            y -= height + _EDGE
            places = zip(parts, row, strict=False)
            texts = [part.text(_EDGE / column, (y - 4) / tall, caption, **_CAPTION) for part, caption in places]
            y -= max(map(_height, texts)) + _EDGE
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[: tall - y, :, :3], tops


def _height(text: Text) -> int:
    return ceil(text.get_window_extent().height)


def png(image: Image.Image) -> bytes:
    """Return a PNG file's bytes, with pixels and no metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
