"""Conversion of numeric arrays to pixels in [0, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medpfl.core.errors import InputError

__all__ = ["unit"]


def unit(values: np.ndarray, what: str = "the images") -> Tensor:
    """Convert values to [0, 1]: divide unsigned integers by their type's maximum, keep floats.

    Args:
        values: array of any shape; bool, uint8, uint16 or float.
        what: name of the images in error messages.

    Returns:
        float32 in [0, 1], of the same shape.

    Raises:
        InputError: the type is another one, or values are not finite or not in [0, 1]; the value of white would then
            be a guess.
    """
    if values.dtype == bool or values.dtype.kind == "f":
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if not (low >= 0 and high <= 1):  # so written, nan fails too
            raise InputError(
                f"{what} have values from {low:g} to {high:g}: they must lie in [0, 1]. Divide by the largest possible "
                "value, and leave normalization to the model"
            )
        return torch.from_numpy(values.astype(np.float32))
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return torch.from_numpy(values.astype(np.float32) / np.iinfo(values.dtype).max)
    raise InputError(f"{what} have type {values.dtype}: give uint8, uint16, or floats in [0, 1]")
