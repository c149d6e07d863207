"""The error for the person who meets it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "nearest"]


class InputError(ValueError):
    """Something that the user gave is wrong: what, where, and what to do. The command line exits with 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message that names what was probably meant.

    >>> nearest("LaplaceNose", ["GaussianNoise", "LaplaceNoise"])
    "did you mean 'LaplaceNoise'?"
    >>> nearest("x", ["labels", "order"])
    'known: labels, order'
    """
    known = list(known)
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.5)
    return f"did you mean '{lower[close[0]]}'?" if close else "known: " + ", ".join(known)
