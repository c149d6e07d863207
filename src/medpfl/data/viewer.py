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

__all__ = ["Shown", "between_percentiles", "dicom_frame", "dicom_frames", "quiet"]

Window = tuple[float, float]

_TINY = 1e-6
_SHOWN_AS_STORED = 8
# What decides how a frame is shown; an enhanced multi-frame file says it once for each frame.
_TAGS = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction")
_TAGS += ("WindowCenter", "WindowWidth", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio")


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
        Exception: whatever pydicom raises for what it cannot read or decode.
    """
    import pydicom

    with quiet():
        header = pydicom.dcmread(path)
        return [_shown(header, frame, window) for frame in frames]


def _shown(header: Any, frame: int, window: Window | None) -> Shown:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    pixels, tags = pixel_array(header, index=frame), _tags(header, frame)
    white = 2**header.BitsStored - 1
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
            if tag in source:
                flat.add(source[tag])
    return flat


def _spacing(tags: Any) -> tuple[float, float]:
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        steps = [float(step) for step in _several(tags.get(name))]
        if len(steps) == 2 and min(steps) > 0:
            return steps[0], steps[1]
    return 1.0, 1.0


def _several(value: Any) -> Sequence[Any]:
    """The values of a tag that may have one, many or none; a center of 0 is one."""
    return [] if value is None else np.atleast_1d(value)  # type: ignore[return-value]  (an array is as good)


def _windowed(pixels: np.ndarray, header: Any, tags: Any, window: Window | None) -> np.ndarray:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values = apply_modality_lut(pixels, tags)
    if window is None and tags.get("VOILUTSequence"):
        bits = tags.VOILUTSequence[0].LUTDescriptor[2]
        return (apply_voi(values, tags) / (2**bits - 1)).astype(np.float32)
    center, width = window or _first_window(tags)
    if width > 0:
        return _window(values, center, width, tags.get("VOILUTFunction") or "LINEAR")
    if values is pixels and header.BitsStored <= _SHOWN_AS_STORED and not header.PixelRepresentation:
        return (pixels / (2**header.BitsStored - 1)).astype(np.float32)
    return between_percentiles(values, pixels != header.get("PixelPaddingValue"))


def _first_window(tags: Any) -> Window:
    """Center and width; a width of 0 where the file has no window."""
    centers, widths = (_several(tags.get(name)) for name in ("WindowCenter", "WindowWidth"))
    return (float(centers[0]), float(widths[0])) if len(centers) and len(widths) else (0.0, 0.0)


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """The three functions of DICOM PS3.3 C.11.2.1, to the whole range: pydicom's own depends on the bit depth."""
    if function == "SIGMOID":
        return (0.5 + 0.5 * np.tanh(2 * (values - center) / width)).astype(np.float32)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return ((values - center) / max(width, _TINY) + 0.5).clip(0, 1).astype(np.float32)


def between_percentiles(values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Values scaled so that the 1st percentile is 0 and the 99th is 1; float32, clipped to [0, 1].

    Args:
        values: of any shape.
        counted: those of which the percentiles are taken; all, if there are none.
    """
    chosen = values if counted is None or not np.any(counted) else values[counted]
    low, high = np.percentile(chosen, (1, 99))
    return ((values - low) / max(high - low, _TINY)).clip(0, 1).astype(np.float32)


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
