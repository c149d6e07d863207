"""How large a model and its images may be: one bound for each, so that a wrong number is an error and not a hang."""

from __future__ import annotations

import math
from typing import Any

from medpfl.core.errors import InputError

__all__ = [
    "MOST_CLASSES",
    "MOST_LAYERS",
    "MOST_PARAMETERS",
    "MOST_PIXELS",
    "check_classes",
    "check_image_shape",
    "check_parameters",
]

MOST_PARAMETERS = 10**9
"""Parameters and buffers of a model, counted together: 4 GB in float32."""
MOST_PIXELS = 2**28
"""Numbers of one image or volume, all channels: a volume of 512 x 512 x 1024 voxels."""
MOST_CLASSES = 10**6
"""Classes of the data."""
MOST_LAYERS = 256
"""Layers or blocks that one argument of a model asks for."""


def check_image_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape of an image as a tuple.

    Raises:
        InputError: not (C, H, W) or (C, D, H, W) of whole numbers above 0, or more than `MOST_PIXELS` numbers.
    """
    sides = tuple(shape) if isinstance(shape, tuple | list) else ()
    if len(sides) not in (3, 4) or not all(type(side) is int and side > 0 for side in sides):
        raise InputError(f"image shape {_shown(shape)}: give (C, H, W), or (C, D, H, W) of volumes, all above 0")
    if math.prod(sides) > MOST_PIXELS:
        raise InputError(
            f"image shape {_shown(sides)}: an image has {_amount(math.prod(sides))} numbers, "
            f"the most is {MOST_PIXELS:,}"
        )
    return sides


def check_classes(classes: Any) -> int:
    """Return a number of classes; raise `InputError` unless it is a whole number from 1 to `MOST_CLASSES`."""
    if type(classes) is not int or not 1 <= classes <= MOST_CLASSES:
        raise InputError(f"classes is {_shown(classes)}: it must be a whole number from 1 to {MOST_CLASSES:,}")
    return classes


def check_parameters(count: int) -> None:
    """Raise `InputError` for a model of more than `MOST_PARAMETERS` parameters and buffers."""
    if count > MOST_PARAMETERS:
        raise InputError(
            f"the model would have {_amount(count)} parameters, the most is {MOST_PARAMETERS:,}: make it smaller"
        )


def _amount(count: int) -> str:
    """Return a count as text that stays short."""
    return f"{count:,}" if count < 10**12 else f"about 10^{len(str(count)) - 1}"


def _shown(value: Any) -> str:
    """Return what was given, cut short."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
