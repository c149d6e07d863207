"""Upper limits for numbers and texts given by a person or a file, all in one place. Does not import torch.

No realistic run needs more. Thus a typing error, or a file from another party, causes an error and not a program that
hangs or runs out of memory.
"""

from __future__ import annotations

import math
from typing import Any

from medpfl.core.errors import InputError

__all__ = [
    "CERTIFICATE",
    "CLASSES",
    "CLIENTS",
    "CONFIG_BYTES",
    "DRAWS",
    "EPOCHS",
    "FACTOR",
    "IMAGES",
    "LAYERS",
    "MEMORY",
    "MINUTES",
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
    "TEXTS",
    "THREADS",
    "USUAL_IMAGES",
    "WORKERS",
    "YAML_NODES",
    "check_classes",
    "check_image_shape",
    "check_numbers",
    "check_parameters",
    "check_whole",
    "plain_ascii",
    "shortened",
    "texts_problem",
]

IMAGES = 1_000_000
"""Images to attack, per batch, per client or per update."""
USUAL_IMAGES = 32
"""Images to attack by default, if there are as many. No limit, but here for all who state it."""
LINE = 200
"""Characters in a line that a user gives for the pages."""
SIDE = 4096
"""Side length in pixels to which images are resized."""
PIXELS = 2**28
"""Elements in one image or volume, all channels together: a volume of 512 x 512 x 1024 voxels."""
CLIENTS = 100_000
EPOCHS = 10_000
STEPS = 1_000_000
"""Gradient steps per update."""
ROUNDS = 100_000
DRAWS = 10_000
"""Random initializations of an untrained model."""
SEEDS = 1000
"""Trainings per setting of a frontier."""
SEED = 2**63 - 1
FACTOR = 1e6
"""Learning rate, momentum and weight decay."""
MEMORY = 1e6
"""GiB."""
MINUTES = 1e5
"""Minutes of searches: two months."""
WORKERS = 4096
"""Jobs at the same time."""
THREADS = 256
"""Torch threads for each job."""
CLASSES = 10_000
PARAMETERS = 10**9
"""Parameters and buffers in a model, counted together: 4 GB in float32."""
LAYERS = 256
"""Layers or blocks requested by one argument of a model."""
NAME = 1000
"""Characters in a name, such as a class name."""
SPEC = 4000
"""Characters in a spec, or in another text that names something."""
CERTIFICATE = 300
"""Characters in a certificate, in the name of an attack, and in a reason why it read nothing."""
TEXTS = {"certificates": "certificate", "found_by": "name in found_by", "unread": "reason in unread"}
"""Fields of a reconstruction that hold a text for each victim, and what one of them is called."""
NESTING = 32
"""Nesting depth of brackets in a spec, and of levels in a YAML or JSON file."""
SWEEP = 1000
"""Specs in one sweep."""
CONFIG_BYTES = 1 << 20
YAML_NODES = 20_000

_WHOLE, _REAL, _SMALL = 1_000_000, 1e9, 1e-30
"""Limits for arguments of MedPFL's parts: largest integer, largest float, smallest nonzero float (magnitudes)."""
_OF_ARGUMENT = {"size": SIDE, "clients": CLIENTS, "levels": 2**40, "modulus": 2**62}
"""Largest integers for arguments with a limit of their own, by argument name."""


def check_image_shape(shape: Any) -> tuple[int, ...]:
    """Return an image shape as a tuple.

    Raises:
        InputError: the shape is not (C, H, W) or (C, D, H, W) with positive integers, or has more than `PIXELS`
            elements.
    """
    sides = tuple(shape) if isinstance(shape, tuple | list) else ()
    if len(sides) not in (3, 4) or not all(type(side) is int and side > 0 for side in sides):
        raise InputError(f"image shape {shortened(shape)}: give (C, H, W), or (C, D, H, W) for volumes, all above 0")
    if (count := math.prod(sides)) > PIXELS:
        raise InputError(
            f"image shape {shortened(sides)}: an image has {_amount(count)} elements, the most is {PIXELS:,}"
        )
    return sides


def check_classes(classes: Any) -> int:
    """Return the number of classes; raise `InputError` unless it is a whole number from 1 to `CLASSES`."""
    check_whole("classes", classes, 1, CLASSES)
    return classes


def check_parameters(count: int) -> None:
    """Raise `InputError` if a model has more than `PARAMETERS` parameters and buffers."""
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
    """Raise `InputError` if a part's argument, or a number inside it, is unreasonably large, tiny or not finite.

    Args:
        name: the argument's name.
        value: a literal. Numbers inside tuples, lists and dictionaries are checked too; other values pass.
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
    """Return a count as a short text."""
    return f"{count:,}" if count < 10**12 else f"about 10^{math.log10(count):.0f}"


def shortened(value: Any, most: int = 60) -> str:
    """Return a value's text for an error message, cut off if it is long.

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


def texts_problem(field: str, found: Any, victims: int) -> str:
    """Return the first problem with an attack's texts, one for each victim; ``""`` if there is none.

    The texts reach the page that may be shared, so they must be short and contain printable ASCII only. The problem
    quotes at most one character of them.

    Args:
        field: one of `TEXTS`, the field of the reconstruction that holds them.
        found: the texts, from any source: a tuple or list of one text per victim, or an empty one.
        victims: number of victims.

    >>> texts_problem("certificates", (), 2), texts_problem("certificates", ("rank 3 of 3", ""), 2)
    ('', '')
    >>> print(texts_problem("certificates", ("tr\\u00e8s bien",), 1))
    a certificate for victim 0 with the character '\\xe8': only printable ASCII is allowed
    """
    if not isinstance(found, tuple | list):
        return f"{field} of type {type(found).__name__}: expected a tuple of texts, one for each victim"
    if len(found) not in (0, victims):
        return f"{field} of length {len(found)}: expected {victims}, one text for each victim, or none at all"
    one = TEXTS[field]
    for victim, text in enumerate(found):
        if not isinstance(text, str):
            return f"a {one} of type {type(text).__name__} for victim {victim}: expected a text"
        if len(text) > CERTIFICATE:
            return f"a {one} of {len(text):,} characters for victim {victim}: at most {CERTIFICATE} are allowed"
        if odd := next((letter for letter in text if not _plain(letter)), ""):
            return f"a {one} for victim {victim} with the character {odd!a}: only printable ASCII is allowed"
    return ""


def plain_ascii(text: str) -> str:
    """Return a certificate that was read from a file in a form fit for a page: cut, and ``?`` for odd characters.

    >>> plain_ascii("rank\\n3"), len(plain_ascii("x" * 1000))
    ('rank?3', 300)
    """
    return "".join(letter if _plain(letter) else "?" for letter in text[:CERTIFICATE])


def _plain(letter: str) -> bool:
    return " " <= letter <= "~"
