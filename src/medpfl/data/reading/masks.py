"""Masks: a class for every pixel, 0 being the background."""

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
"""Classes; a mask of more values is a picture."""


def read_mask(path: Path) -> np.ndarray:
    """The values of a gray or palette image, as stored, (H, W).

    Raises:
        ValueError: a color image, or no regular file.
        Exception: whatever Pillow raises for a broken file.
    """
    if why := oddity_of(path):
        raise ValueError(f"its mask: {why}")
    with path.open("rb") as file, Image.open(file, formats=("PNG", "BMP", "TIFF")) as image:
        ImageOps.exif_transpose(image, in_place=True)
        values = np.asarray(image)
    if values.ndim == 3:
        if (values[..., :3] != values[..., :1]).any():
            raise ValueError("a mask in color: save one number a pixel, gray or with a palette")
        values = values[..., 0]
    return values.astype(np.int64)


def numbered(masks: Sequence[np.ndarray]) -> tuple[list[Tensor], int]:
    """Masks whose values are any numbers, 0 among them, as classes from 0 on, and how many.

    Raises:
        InputError: values that are no whole numbers, more than 32 of them, or a single one.
    """
    values = sorted({int(value) for mask in masks for value in np.unique(_whole(mask))} | {0})
    if len(values) < 2:
        raise InputError("all masks are empty: they hold nothing but 0, the background")
    if len(values) > MOST:
        raise InputError(
            f"the masks have {len(values)} different values: 2 to {MOST} are needed, one a class and 0 for the "
            "background. JPEG blurs masks: save them as PNG"
        )
    return [torch.from_numpy(np.searchsorted(values, mask)).long() for mask in masks], len(values)


def _whole(mask: np.ndarray) -> np.ndarray:
    if mask.dtype.kind not in "uib" or (mask.dtype.kind == "i" and mask.size and mask.min() < 0):
        raise InputError(f"the masks are of type {mask.dtype}: give whole numbers, 0 or more")
    return mask


def fitted_mask(mask: Tensor, classes: int, size: int, fit: str, spacing: Any = None) -> Tensor:
    """A mask (H, W) or (D, H, W) as its image is fitted: of each pixel the class that covers most of it.

    Args:
        mask: classes from 0 on.
        classes: how many.
        size, fit: of the image.
        spacing: of its pixels or voxels along the axes; ``None``: they are square or cubic.
    """
    spacing = spacing or (1,) * mask.ndim
    planes = torch.stack([(mask == label).float() for label in range(classes)])
    scaled = fitted(planes, size, fit, spacing) if mask.ndim == 2 else fitted_volume(planes, size, fit, spacing)[0]
    return scaled.argmax(0)


def class_of(masks: Tensor) -> Tensor:
    """(M,) the commonest class above 0 of each mask (M, ...), or 0 where there is none."""
    top = int(masks.max())
    if top < 1:
        return torch.zeros(len(masks), dtype=torch.long)
    counts = torch.stack([(masks == label).flatten(1).sum(1) for label in range(1, top + 1)], 1)
    return torch.where(counts.amax(1) > 0, counts.argmax(1) + 1, 0)
