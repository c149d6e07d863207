"""DICOM files to pixels in [0, 1] as a viewer shows them."""

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
"""Share of the voxels that differ from the commonest value: if fewer do, percentiles are theirs alone."""
# What decides how a frame is shown; an enhanced multi-frame file says it once for each frame.
_TAGS = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction")
_TAGS += ("WindowCenter", "WindowWidth", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio")


class UnshownError(ValueError):
    """A file whose pixels are whole and that cannot be shown; the message goes on from the file's name."""


class Shown(NamedTuple):
    """A frame.

    Attributes:
        image: (1, H, W), or (3, H, W) for color; float32 in [0, 1].
        spacing: height and width of a pixel, in mm or in proportion; (1, 1) where the file does not say.
    """

    image: Tensor
    spacing: tuple[float, float]


def dicom_frame(path: str | PathLike[str], frame: int = 0) -> Tensor:
    """The image of one frame; see `dicom_frames`."""
    return dicom_frames(path, [frame])[0].image


def dicom_frames(path: str | PathLike[str], frames: Sequence[int], window: Window | None = None) -> list[Shown]:
    """Frames of a file: modality LUT, VOI LUT or window, MONOCHROME1 inverted, palettes and YBR as RGB.

    A gray image without a window is shown as stored if it has 8 bits or fewer and no modality LUT, else
    between its 1st and 99th percentile, padding apart. Color is divided by what its bits can hold.

    Args:
        path: of the file.
        frames: their positions, from 0.
        window: center and width, in place of the file's own.

    Raises:
        UnshownError: a tag that decides how the pixels are shown is no number, or a pixel is not finite.
        Exception: whatever pydicom raises for what it cannot read or decode.
    """
    with quiet():
        header = read_header(path)
        return [_shown(header, frame, window) for frame in frames]


def starts_bare(start: bytes) -> bool:
    """Return whether a file's first bytes are those of a data set without the preamble and the mark ``DICM``."""
    return len(start) > 8 and start[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08")


def read_header(path: str | PathLike[str], **options: Any) -> Any:
    """Read a DICOM file, with or without preamble and mark.

    Args:
        path: of the file.
        options: of ``pydicom.dcmread``.

    Raises:
        UnshownError: the file does not say how its pixels are compressed.
        Exception: whatever pydicom raises for what it cannot read.
    """
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with open(path, "rb") as file:  # noqa: PTH123  (the path may be a text)
        bare = starts_bare(file.read(132))
    header: Any = pydicom.dcmread(path, force=bare, **options)
    if "TransferSyntaxUID" not in header.file_meta:
        if "PixelData" in header and header["PixelData"].is_undefined_length:
            raise UnshownError("its pixels are compressed, and no transfer syntax says how")
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
    """The header's tags, with those of the frame's functional groups laid over them."""
    from pydicom.dataset import Dataset

    shared = (header.get("SharedFunctionalGroupsSequence") or [])[:1]
    own = (header.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    macros = [e.value[0] for group in (*shared, *own) for e in group if e.VR == "SQ" and e.value]
    flat = Dataset()
    flat.file_meta = header.file_meta  # the byte order of lookup tables
    for source in (header, *macros):
        for tag in _TAGS:
            if tag in source:  # as it is stored: a number that is none would raise an error here
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
"""Value representations in which a number is a text; ``None``: as the dictionary says, where the VR is implicit."""


def _numbers(tags: Any, name: str) -> list[float]:
    """Return the numbers of a tag; none where it is missing or empty. A decimal comma is read as a point.

    Raises:
        UnshownError: one of them is no finite number.
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
        raise UnshownError(f"its {name} is no number") from None
    if not np.isfinite(numbers).all():
        raise UnshownError(f"its {name} is not a finite number")
    return numbers


def _rescaled(pixels: np.ndarray, tags: Any) -> np.ndarray:
    """Return the pixels by the modality's table or line; a missing or an empty tag changes nothing."""
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
    """Return which pixels are no padding: it is a value, or a range if ``PixelPaddingRangeLimit`` says its end."""
    kind = {("f", 4): "Float", ("f", 8): "DoubleFloat"}.get((pixels.dtype.kind, pixels.dtype.itemsize), "")
    first, last = (_as_pixel(header.get(f"{kind}PixelPadding{end}"), pixels.dtype) for end in ("Value", "RangeLimit"))
    if first is None:
        return np.ones(pixels.shape, bool)
    low, high = sorted((first, first if last is None else last))
    return (pixels < low) | (pixels > high)


def _as_pixel(value: Any, dtype: np.dtype) -> float | None:
    """Return a padding value as the pixels' type has it: its VR often has the other sign, of the same bytes."""
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
    """Return center and width; a width of 0 where the file has no window."""
    centers, widths = _numbers(tags, "WindowCenter"), _numbers(tags, "WindowWidth")
    return (centers[0], widths[0]) if centers and widths else (0.0, 0.0)


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Apply a function of DICOM PS3.3 C.11.2.1, to the whole range: pydicom's own depends on the bit depth.

    A width below 1, which LINEAR must not have and maps of tiny values do, is that of LINEAR_EXACT.
    """
    if function == "SIGMOID":
        return (0.5 + 0.5 * np.tanh(2 * (values - center) / width)).astype(np.float32)
    if function == "LINEAR" and width >= 1:
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float32)
    return ((values - center) / width + 0.5).clip(0, 1).astype(np.float32)


def between_percentiles(values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Scale values so that the 1st percentile is 0 and the 99th is 1; float32, clipped to [0, 1].

    Where nearly all are of one value, the percentiles are those of the others, with that value in the range: else a
    few bright voxels in a black volume would all become white. Values that are all equal become 0.

    Args:
        values: of any shape and magnitude, finite.
        counted: those of which the percentiles are taken; all, if there are none.
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
    """Without the warnings and log records that odd headers give rise to: they quote tags.

    Filters and loggers belong to the process, not to a thread: enter it once, around the threads.
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
