"""Decoding of image files (PNG, JPEG, BMP, TIFF) in any mode, bit depth and orientation to pixels in [0, 1]."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from medpfl.core.atomic_files import oddity_of

__all__ = ["FORMATS", "SUFFIXES", "decode", "pillow_quiet", "reason"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
"""Suffixes of image files, in lower case."""

# Pillow guesses by content. Only these formats: some of its others start programs.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_GRAY = ("1", "L", "LA", "La")
_DEEP = ("I", "F")  # and all of I;16
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@contextmanager
def pillow_quiet() -> Iterator[None]:
    """Silence Pillow's warnings, but turn its decompression bomb warning into an error.

    Warning filters belong to the process, not to a thread: enter this context once, around all threads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(path: Path) -> Tensor:
    """Return the file's first page, upright; transparent areas are composited over black.

    8-bit values are divided by 255 and 16-bit values by 65535, never by the image's own maximum. Pillow reduces 16-bit
    RGB to 8 bits. 32-bit integers must lie in 0 to 65535 and floats in 0 to 1: otherwise, the value of white would be a
    guess.

    Returns:
        (1, H, W) for gray modes, (3, H, W) for the others; float32 in [0, 1].

    Raises:
        ValueError: no regular file, no pixels, or 32-bit values out of range.
        Exception: any error from Pillow for a broken file; `reason` condenses it.
    """
    if why := oddity_of(path):
        raise ValueError(why)
    if not path.stat().st_size:
        raise ValueError("empty file")
    # Opened here, not by name: Pillow would memory-map the file, which in 13.0 garbles a rotated TIFF.
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        if 0 in image.size:
            raise ValueError("has no pixels")
        ImageOps.exif_transpose(image, in_place=True)
        pixels = _deep(image) if image.mode in _DEEP or image.mode.startswith("I;16") else _eight_bit(image)
    return torch.from_numpy(pixels).movedim(-1, 0)


def _eight_bit(image: Image.Image) -> np.ndarray:
    alpha = image.has_transparency_data
    mode = ("LA" if alpha else "L") if image.mode in _GRAY else ("RGBA" if alpha else "RGB")
    pixels = np.asarray(image.convert(mode), dtype=np.float32) / 255
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return pixels[..., :-1] * pixels[..., -1:] if alpha else pixels


def _deep(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image).astype(np.float32)[..., None]
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode not in _DEEP:
        bits = tags.get(_BITS, (16,))[0]
        pixels = pixels / (2**bits - 1)
        # Pillow itself inverts a white-is-zero TIFF with 8 bits, but not with 16.
        return 1 - pixels if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else pixels
    white = 65535 if image.mode == "I" else 1
    if not (pixels.min() >= 0 and pixels.max() <= white):  # so written, nan fails too
        raise ValueError(f"its values are not in 0 to {white}; save it with 8 or 16 bits")
    return pixels / white


# A quoted string with a slash, or an absolute path without quotes.
_PLACE = re.compile(r"""(["'])[^"']*[/\\][^"']*\1|(?<![\w./:])/[^\s"':;,)]+""")


def reason(error: Exception, path: str | os.PathLike[str] | None = None) -> str:
    """Return a short reason why a file could not be read, without any path.

    Args:
        error: the error raised by the file's reader.
        path: The file's path, which is removed from the error's text. Other text that looks like a path is removed too.
    """
    match error:
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
        case UnidentifiedImageError():
            return "not an image"
        case OSError(strerror=str(text)):
            return text
        case MemoryError():
            return "needs more memory than is available"
    text = str(error).partition("\n")[0]
    if path is not None and "\0" not in os.fspath(path):
        for own in (os.path.realpath(path), str(Path(path).absolute()), os.fspath(path)):
            text = text.replace(own, "the file")
    return (_PLACE.sub("the file", text) or type(error).__name__)[:100]
