"""The error for the person who meets it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from math import inf

__all__ = ["DivergedError", "InputError", "check_positive", "listed", "nearest"]


class InputError(ValueError):
    """Something that the user gave is wrong: what, where, and what to do. The command line exits with 2."""


class DivergedError(InputError):
    """A training left the finite numbers: its step or its noise is too large."""


def check_positive(**values: float) -> None:
    """Raises `InputError` for the first of the named values that is not a finite number above 0."""
    for name, value in values.items():
        if not 0 < value < inf:
            raise InputError(f"{name} is {value}: it must be a number above 0")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message that names what was probably meant.

    >>> nearest("LaplaceNose", ["GaussianNoise", "LaplaceNoise"])
    "did you mean 'LaplaceNoise'?"
    >>> nearest("x", ["labels", "order"])
    'known: labels, order'
    """
    known = list(known)
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.55)
    return f"did you mean '{lower[close[0]]}'?" if close else "known: " + ", ".join(known)


def listed(problems: Sequence[str], most: int = 8) -> str:
    """Problems as the lines below an error message: the first of them, and how many more there are.

    >>> print("they do not fit:" + listed(["a: missing", "b: missing", "c: missing"], most=2))
    they do not fit:
      a: missing
      b: missing
      and 1 more
    """
    more = len(problems) - most
    lines = [*problems[:most], *([f"and {more} more"] if more > 0 else [])]
    return "".join(f"\n  {line}" for line in lines)
