"""Segmentation masks: a class for each pixel, 0 for the background."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from medpfl.core.atomic_files import oddity_of
from medpfl.core.errors import InputError
from medpfl.data.reading.resize import fitted, fitted_volume

__all__ = ["MOST", "class_of", "fitted_mask", "numbered", "read_mask"]

MOST = 32
"""Maximum number of classes. A mask with more values is taken for a picture."""


def read_mask(path: Path) -> np.ndarray:
    """Return the stored values of a gray or palette image, (H, W).

    Raises:
        ValueError: the image has color, or the path is not a regular file.
        Exception: any error from Pillow for a broken file.
    """
    if why := oddity_of(path):
        raise ValueError(f"its mask: {why}")
    with path.open("rb") as file, Image.open(file, formats=("PNG", "BMP", "TIFF")) as image:
        ImageOps.exif_transpose(image, in_place=True)
        values = np.asarray(image)
    if values.ndim == 3:
        if (values[..., :3] != values[..., :1]).any():
            raise ValueError("its mask is in color: save one number per pixel, as gray or with a palette")
        values = values[..., 0]
    return values.astype(np.int64)


def numbered(masks: Sequence[np.ndarray]) -> tuple[list[Tensor], int]:
    """Renumber mask values as classes from 0, and count the classes. 0 is always among the values.

    Raises:
        InputError: the values are not integers of 0 or more, there are more than 32, or 0 is the only one.
    """
    values = sorted({int(value) for mask in masks for value in np.unique(_whole(mask))} | {0})
    if len(values) < 2:
        raise InputError("all masks are empty: they hold only 0, the background")
    if len(values) > MOST:
        raise InputError(
            f"the masks have {len(values)} different values: expected 2 to {MOST}, one per class and 0 for the "
            "background. JPEG blurs masks: save them as PNG"
        )
    return [torch.from_numpy(np.searchsorted(values, mask)).long() for mask in masks], len(values)


def _whole(mask: np.ndarray) -> np.ndarray:
    if mask.dtype.kind not in "uib" or (mask.dtype.kind == "i" and mask.size and mask.min() < 0):
        raise InputError(f"the masks have type {mask.dtype} or values below 0: give integers, 0 or more")
    return mask


def fitted_mask(mask: Tensor, classes: int, size: int, fit: str, spacing: Any = None) -> Tensor:
    """Resize a mask (H, W) or (D, H, W) like its image; each output pixel gets the class that covers most of it.

    Args:
        mask: classes from 0 to `classes` - 1.
        classes: number of classes.
        size, fit: as in `fitted` and `fitted_volume`.
        spacing: pixel or voxel size along the axes; ``None`` for square pixels or cubic voxels.
    """
    spacing = spacing or (1,) * mask.ndim
    planes = torch.stack([(mask == label).float() for label in range(classes)])
    scaled = fitted(planes, size, fit, spacing) if mask.ndim == 2 else fitted_volume(planes, size, fit, spacing)[0]
    return scaled.argmax(0)


def class_of(masks: Tensor) -> Tensor:
    """Return (M,) each mask's most common class above 0, or 0 if it has none. Masks are (M, ...)."""
    top = int(masks.max())
    if top < 1:
        return torch.zeros(len(masks), dtype=torch.long)
    counts = torch.stack([(masks == label).flatten(1).sum(1) for label in range(1, top + 1)], 1)
    return torch.where(counts.amax(1) > 0, counts.argmax(1) + 1, 0)
