"""Numbers of any type to pixels in [0, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medpfl.core.errors import InputError

__all__ = ["unit"]


def unit(values: np.ndarray, what: str = "the images") -> Tensor:
    """Unsigned integers divided by what their type can hold; floats as they are, if they lie in [0, 1].

    Args:
        values: of any shape; bool, uint8, uint16 or float.
        what: the images, in an error message.

    Returns:
        float32 in [0, 1], of the same shape.

    Raises:
        InputError: another type, or values that are not finite or not in [0, 1]: what white means would be a
            guess.
    """
    if values.dtype == bool or values.dtype.kind == "f":
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if not (low >= 0 and high <= 1):  # so written, nan fails too
            raise InputError(
                f"{what} have values from {low:g} to {high:g}: they must lie in [0, 1]. Divide by the largest that "
                "is possible, and leave normalization to the model"
            )
        return torch.from_numpy(values.astype(np.float32))
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return torch.from_numpy(values.astype(np.float32) / np.iinfo(values.dtype).max)
    raise InputError(f"{what} are of type {values.dtype}: give uint8, uint16, or floats in [0, 1]")
