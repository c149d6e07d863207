"""The largest numbers and texts that a person or a file may give, all in one place. Free of torch.

Beyond them no run ends and no machine has the memory, so that a slip of the keyboard, or a file that another party
wrote, is answered by an error and not by a program that hangs.
"""

from __future__ import annotations

import math
from typing import Any

from medpfl.core.errors import InputError

__all__ = [
    "CLASSES",
    "CLIENTS",
    "CONFIG_BYTES",
    "DRAWS",
    "EPOCHS",
    "FACTOR",
    "IMAGES",
    "LAYERS",
    "MEMORY",
    "NAME",
    "NESTING",
    "PARAMETERS",
    "PIXELS",
    "ROUNDS",
    "SEED",
    "SEEDS",
    "SIDE",
    "SPEC",
    "STEPS",
    "SWEEP",
    "YAML_NODES",
    "check_classes",
    "check_image_shape",
    "check_numbers",
    "check_parameters",
    "check_whole",
    "shortened",
]

IMAGES = 1_000_000
"""Images to attack, in a batch, of a client or behind an update."""
SIDE = 4096
"""Edge that images are resized to, in pixels."""
PIXELS = 2**28
"""Numbers of one image or volume, all channels: a volume of 512 x 512 x 1024 voxels."""
CLIENTS = 100_000
EPOCHS = 10_000
STEPS = 1_000_000
"""Gradient steps behind one update."""
ROUNDS = 100_000
DRAWS = 10_000
"""Draws of untrained weights."""
SEEDS = 1000
"""Trainings of one setting of a frontier."""
SEED = 2**63 - 1
FACTOR = 1e6
"""Learning rate, momentum and weight decay."""
MEMORY = 1e6
"""GiB."""
CLASSES = 10_000
PARAMETERS = 10**9
"""Parameters and buffers of a model, counted together: 4 GB in float32."""
LAYERS = 256
"""Layers or blocks that one argument of a model asks for."""
NAME = 1000
"""Characters of a name, such as that of a class."""
SPEC = 4000
"""Characters of a spec, or of another text that names something."""
NESTING = 32
"""Brackets within brackets of a spec, and levels of a YAML or JSON file."""
SWEEP = 1000
"""Specs that one sweep stands for."""
CONFIG_BYTES = 1 << 20
YAML_NODES = 20_000

_WHOLE, _REAL, _SMALL = 1_000_000, 1e9, 1e-30
"""Of the arguments of our own parts: the largest whole number, the largest number, the least one that is not 0."""
_OF_ARGUMENT = {"size": SIDE, "clients": CLIENTS, "levels": 2**40, "modulus": 2**62}
"""Whole numbers with a limit of their own, by the argument's name."""


def check_image_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape of an image as a tuple.

    Raises:
        InputError: not (C, H, W) or (C, D, H, W) of whole numbers above 0, or more than `PIXELS` numbers.
    """
    sides = tuple(shape) if isinstance(shape, tuple | list) else ()
    if len(sides) not in (3, 4) or not all(type(side) is int and side > 0 for side in sides):
        raise InputError(f"image shape {shortened(shape)}: give (C, H, W), or (C, D, H, W) of volumes, all above 0")
    if (count := math.prod(sides)) > PIXELS:
        raise InputError(
            f"image shape {shortened(sides)}: an image has {_amount(count)} numbers, the most is {PIXELS:,}"
        )
    return sides


def check_classes(classes: Any) -> int:
    """Return a number of classes; raise `InputError` unless it is a whole number from 1 to `CLASSES`."""
    check_whole("classes", classes, 1, CLASSES)
    return classes


def check_parameters(count: int) -> None:
    """Raise `InputError` for a model of more than `PARAMETERS` parameters and buffers."""
    if count > PARAMETERS:
        raise InputError(
            f"the model would have {_amount(count)} parameters, the most is {PARAMETERS:,}: make it smaller"
        )


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Raise `InputError` unless a value is a whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise InputError(
            f"{name} is {shortened(value)}: it must be a whole number, at least {least} and at most {most}"
        )


def check_numbers(name: str, value: Any) -> None:
    """Raise `InputError` if an argument of a part of ours, or a number inside it, is out of all reason.

    Args:
        name: of the argument.
        value: a literal; tuples, lists and dictionaries are looked into, and whatever is no number passes.
    """
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, tuple | list):
        for one in value:
            check_numbers(name, one)
    elif isinstance(value, int) and not isinstance(value, bool):
        most = _OF_ARGUMENT.get(name, _WHOLE)
        if abs(value) > most:
            raise InputError(f"{name} is {shortened(value)}: it must be at most {most}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{name} is {value}: it must be a finite number")
        if abs(value) > _REAL or 0 < abs(value) < _SMALL:
            raise InputError(f"{name} is {value}: it must be 0, or between {_SMALL:g} and {_REAL:g}")


def _amount(count: int) -> str:
    """Return a count as text that stays short."""
    return f"{count:,}" if count < 10**12 else f"about 10^{math.log10(count):.0f}"


def shortened(value: Any, most: int = 60) -> str:
    """A value as an error message shows it: the beginning of it, if it is long.

    >>> shortened(10**70)
    'a whole number of more than 60 digits'
    >>> shortened("x" * 100, most=8)
    "'xxxxxxx..."
    """
    if isinstance(value, int) and abs(value) >= 10**most:  # a number of many digits is not even made a text
        return f"a whole number of more than {most} digits"
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits inside
        return f"a {type(value).__name__} of very large numbers"
    return text if len(text) <= most else f"{text[:most]}..."
