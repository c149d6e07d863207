"""DICOM and NIfTI files to pixels in [0, 1] as a viewer shows them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["dicom_frame", "volume"]

_TINY = 1e-6


def dicom_frame(path: str | PathLike[str], frame: int = 0) -> Tensor:
    """One frame: modality LUT, VOI window (or percentiles if the file gives none), MONOCHROME1 inverted.

    Returns:
        (1, H, W), or (3, H, W) for color; float32 in [0, 1].

    Raises:
        Exception: whatever pydicom raises for what it cannot read or decode.
    """
    import pydicom
    from pydicom.pixels.utils import pixel_array

    with _quiet():
        header = pydicom.dcmread(path)
        pixels = pixel_array(header, index=frame)
        if pixels.ndim == 3:
            return torch.from_numpy(pixels.astype(np.float32) / (2**header.BitsAllocated - 1)).movedim(-1, 0)
        shown = _windowed(pixels, header)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return torch.from_numpy(shown)[None]


def _windowed(pixels: np.ndarray, header: Any) -> np.ndarray:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values = apply_modality_lut(pixels, header)
    if header.get("VOILUTSequence"):
        bits = header.VOILUTSequence[0].LUTDescriptor[2]
        return (apply_voi(values, header) / (2**bits - 1)).astype(np.float32)
    if not header.get("WindowCenter") or not header.get("WindowWidth"):
        return _between_percentiles(values)
    center, width = (np.atleast_1d(tag)[0] for tag in (header.WindowCenter, header.WindowWidth))
    return _window(values, float(center), float(width), header.get("VOILUTFunction") or "LINEAR")


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """The three functions of DICOM PS3.3 C.11.2.1, to the whole range: pydicom's own depends on the bit depth."""
    if function == "SIGMOID":
        return (0.5 + 0.5 * np.tanh(2 * (values - center) / width)).astype(np.float32)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return ((values - center) / max(width, _TINY) + 0.5).clip(0, 1).astype(np.float32)


def volume(path: str | PathLike[str]) -> Tensor:
    """A volume (of a series the first), right, anterior, superior, windowed between its percentiles.

    Returns:
        (X, Y, Z) float32 in [0, 1]; X grows to the patient's right, Y to the front, Z to the head.

    Raises:
        Exception: whatever nibabel raises for what it cannot read.
    """
    import nibabel

    with _quiet():
        image: Any = nibabel.load(path)  # type: ignore[attr-defined]
        values = np.asarray(nibabel.as_closest_canonical(image).dataobj)  # type: ignore[attr-defined]
    return torch.from_numpy(_between_percentiles(values.reshape(*values.shape[:3], -1)[..., 0]))


def _between_percentiles(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (1, 99))
    return ((values - low) / max(high - low, _TINY)).clip(0, 1).astype(np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that old or odd headers give rise to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
