"""Decoding of DICOM files to pixels in [0, 1], as a viewer shows them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Shown", "UnshownError", "between_percentiles", "dicom_frame", "dicom_frames", "quiet", "read_header",
    "starts_bare",
]  # fmt: skip

Window = tuple[float, float]

_SHOWN_AS_STORED = 8
_RARE = 0.05
"""Below this share of voxels that differ from the most common value, percentiles use only those voxels."""
# Tags that control how a frame is shown; an enhanced multi-frame file holds them per frame.
_TAGS = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction")
_TAGS += ("WindowCenter", "WindowWidth", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio")


class UnshownError(ValueError):
    """Error for a file with intact pixels that cannot be displayed. Its message continues after the file name."""


class Shown(NamedTuple):
    """A rendered frame.

    Attributes:
        image: (1, H, W), or (3, H, W) for color; float32 in [0, 1].
        spacing: pixel height and width, in mm or as a ratio; (1, 1) if the file does not say.
    """

    image: Tensor
    spacing: tuple[float, float]


def dicom_frame(path: str | PathLike[str], frame: int = 0) -> Tensor:
    """Return the image of one frame; see `dicom_frames`."""
    return dicom_frames(path, [frame])[0].image


def dicom_frames(path: str | PathLike[str], frames: Sequence[int], window: Window | None = None) -> list[Shown]:
    """Return frames after modality LUT and VOI LUT or window, with MONOCHROME1 inverted and palettes and YBR as RGB.

    A gray image without a window is shown as stored if it has at most 8 bits and no modality LUT. Otherwise it is
    scaled between its 1st and 99th percentiles, without padding. Color is divided by the largest value of its bit
    depth.

    Args:
        path: path of the file.
        frames: frame indices, from 0.
        window: window center and width, instead of the file's own.

    Raises:
        UnshownError: a tag needed for display is not a number, or a pixel is not finite.
        Exception: any error from pydicom for a file that it cannot read or decode.
    """
    with quiet():
        header = read_header(path)
        return [_shown(header, frame, window) for frame in frames]


def starts_bare(start: bytes) -> bool:
    """Return True if a file's first bytes start a data set without the preamble and the mark ``DICM``."""
    return len(start) > 8 and start[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08")


def read_header(path: str | PathLike[str], **options: Any) -> Any:
    """Read a DICOM file, with or without preamble and ``DICM`` mark.

    Args:
        path: path of the file.
        options: options of ``pydicom.dcmread``.

    Raises:
        UnshownError: the file does not say how its pixels are compressed.
        Exception: any error from pydicom for a file that it cannot read.
    """
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with open(path, "rb") as file:  # noqa: PTH123  (the path may be a text)
        bare = starts_bare(file.read(132))
    header: Any = pydicom.dcmread(path, force=bare, **options)
    if "TransferSyntaxUID" not in header.file_meta:
        if "PixelData" in header and header["PixelData"].is_undefined_length:
            raise UnshownError("its pixels are compressed, but the transfer syntax is missing")
        implicit, little = header.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return header


def _shown(header: Any, frame: int, window: Window | None) -> Shown:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    pixels, tags = pixel_array(header, index=frame), _tags(header, frame)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UnshownError("holds pixels that are not finite (NaN)")
    white = 1 if pixels.dtype.kind == "f" else 2**header.BitsStored - 1
    if header.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)
        white = np.iinfo(pixels.dtype).max
    if pixels.ndim == 3:
        color = torch.from_numpy((pixels[..., :3] / white).astype(np.float32)).movedim(-1, 0)
        return Shown(color, _spacing(tags))
    gray = _windowed(pixels, header, tags, window)
    if header.PhotometricInterpretation == "MONOCHROME1":
        gray = 1 - gray
    return Shown(torch.from_numpy(gray)[None], _spacing(tags))


def _tags(header: Any, frame: int) -> Any:
    """Return the header's display tags, overridden by those in the frame's functional groups."""
    from pydicom.dataset import Dataset

    shared = (header.get("SharedFunctionalGroupsSequence") or [])[:1]
    own = (header.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    macros = [e.value[0] for group in (*shared, *own) for e in group if e.VR == "SQ" and e.value]
    flat = Dataset()
    flat.file_meta = header.file_meta  # the byte order of lookup tables
    for source in (header, *macros):
        for tag in _TAGS:
            if tag in source:  # as stored: converting an invalid number would raise an error here
                stored: Any = source.get_item(tag)
                flat[stored.tag] = stored
    return flat


def _spacing(tags: Any) -> tuple[float, float]:
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        steps = _numbers(tags, name)
        if len(steps) == 2 and min(steps) > 0:
            return steps[0], steps[1]
    return 1.0, 1.0


_TEXTS = (None, "DS", "IS", "LO", "SH", "UN")
"""Value representations that store numbers as text; None means that the VR is implicit and the dictionary gives it."""


def _numbers(tags: Any, name: str) -> list[float]:
    """Return a tag's numbers, or an empty list if it is missing or empty. A decimal comma is read as a point.

    Raises:
        UnshownError: a value is not a finite number.
    """
    if name not in tags:
        return []
    stored: Any = tags.get_item(name)
    value = stored.value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace") if stored.VR in _TEXTS else tags[name].value
    if isinstance(value, str):
        value = value.replace(",", ".").split("\\")
    texts = [] if value is None else value if isinstance(value, Sequence) else [value]
    try:
        numbers = [float(text) for text in texts if str(text).strip(" \0")]
    except ValueError:
        raise UnshownError(f"its {name} is not a number") from None
    if not np.isfinite(numbers).all():
        raise UnshownError(f"its {name} is not a finite number")
    return numbers


def _rescaled(pixels: np.ndarray, tags: Any) -> np.ndarray:
    """Return pixels after the modality LUT or linear rescale; a missing or empty tag changes nothing."""
    from pydicom.pixels.processing import apply_modality_lut

    if tags.get("ModalityLUTSequence"):
        return apply_modality_lut(pixels, tags)
    slope, intercept = _numbers(tags, "RescaleSlope"), _numbers(tags, "RescaleIntercept")
    if not slope and not intercept:
        return pixels
    if slope and slope[0] == 0:
        raise UnshownError("its RescaleSlope is 0")
    return pixels.astype(np.float64) * (slope or [1.0])[0] + (intercept or [0.0])[0]


def _windowed(pixels: np.ndarray, header: Any, tags: Any, window: Window | None) -> np.ndarray:
    from pydicom.pixels.processing import apply_voi

    values = _rescaled(pixels, tags)
    if window is None and tags.get("VOILUTSequence"):
        bits = tags.VOILUTSequence[0].LUTDescriptor[2]
        return (apply_voi(values, tags) / (2**bits - 1)).astype(np.float32)
    center, width = window or _first_window(tags)
    if width > 0:
        return _window(values, center, width, tags.get("VOILUTFunction") or "LINEAR")
    whole = pixels.dtype.kind != "f"
    if whole and values is pixels and header.BitsStored <= _SHOWN_AS_STORED and not header.PixelRepresentation:
        return (pixels / (2**header.BitsStored - 1)).astype(np.float32)
    return between_percentiles(values, _counted(pixels, header))


def _counted(pixels: np.ndarray, header: Any) -> np.ndarray:
    """Return True for each pixel that is not padding: one value, or a range up to ``PixelPaddingRangeLimit``."""
    kind = {("f", 4): "Float", ("f", 8): "DoubleFloat"}.get((pixels.dtype.kind, pixels.dtype.itemsize), "")
    first, last = (_as_pixel(header.get(f"{kind}PixelPadding{end}"), pixels.dtype) for end in ("Value", "RangeLimit"))
    if first is None:
        return np.ones(pixels.shape, bool)
    low, high = sorted((first, first if last is None else last))
    return (pixels < low) | (pixels > high)


def _as_pixel(value: Any, dtype: np.dtype) -> float | None:
    """Return a padding value in the pixels' type: its VR often has the other sign with the same bytes."""
    if isinstance(value, bytes):
        value = int.from_bytes(value, "little")
    if not isinstance(value, int | float):
        return None
    if dtype.kind not in "ui":
        return float(value)
    bits = 8 * dtype.itemsize
    value = int(value) % 2**bits
    return value - 2**bits if dtype.kind == "i" and value >= 2 ** (bits - 1) else value


def _first_window(tags: Any) -> Window:
    """Return the window center and width; a width of 0 means that the file has no window."""
    centers, widths = _numbers(tags, "WindowCenter"), _numbers(tags, "WindowWidth")
    return (centers[0], widths[0]) if centers and widths else (0.0, 0.0)


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Apply a window function from DICOM PS3.3 C.11.2.1 to the full range; pydicom's own depends on the bit depth.

    A width below 1 is applied as LINEAR_EXACT: LINEAR does not allow it, but maps with tiny values have it.
    """
    if function == "SIGMOID":
        return (0.5 + 0.5 * np.tanh(2 * (values - center) / width)).astype(np.float32)
    if function == "LINEAR" and width >= 1:
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float32)
    return ((values - center) / width + 0.5).clip(0, 1).astype(np.float32)


def between_percentiles(values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Scale values so that the 1st percentile becomes 0 and the 99th becomes 1; float32, clipped to [0, 1].

    If nearly all values are equal, the percentiles are computed from the others, and the range is extended to the
    common value. Otherwise, a few bright voxels in a black volume would all become white. Constant input becomes 0.

    Args:
        values: finite values, of any shape and magnitude.
        counted: True for values to include in the percentiles; None, or an all-False array, includes all.
    """
    chosen = values if counted is None or not np.any(counted) else values[counted]
    common = np.median(chosen)
    others = chosen[chosen != common]
    if 0 < others.size < _RARE * chosen.size:
        low, high = np.percentile(others, (1, 99)).astype(np.float64)
        low, high = min(low, np.float64(common)), max(high, np.float64(common))
    else:
        low, high = np.percentile(chosen, (1, 99)).astype(np.float64)
    if not high > low:
        return np.zeros(values.shape, np.float32)
    scaled = np.subtract(values, low, dtype=np.float64)
    scaled /= high - low
    return scaled.clip(0, 1, out=scaled).astype(np.float32)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log records about unusual headers, because they quote tags.

    Filters and loggers belong to the process, not to a thread: enter this context once, around all threads.
    """
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global")]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.disabled = True
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled
