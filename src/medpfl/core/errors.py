"""Errors for the user, and helpers for their messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from math import inf

__all__ = [
    "HIDDEN",
    "DivergedError",
    "InputError",
    "OutOfMemoryError",
    "check_positive",
    "listed",
    "nearest",
    "private",
    "resolved",
]


HIDDEN = "(hidden)"
"""Placeholder in a message for text that may not be shown."""

_START, _ELSE, _END = "\ue0f0", "\ue0f1", "\ue0f2"
_MARKED = re.compile(f"{_START}([^{_ELSE}]*){_ELSE}([^{_END}]*){_END}")


def private(text: object, instead: str = HIDDEN) -> str:
    """Mark a part of a message that may name a patient: a file, class folder or path, or a library's message about one.

    `InputError` and `medpfl.core.messages.say` understand the mark: a terminal shows the text, a log gets `instead`.

    >>> error = InputError(f"cannot read {private('doe.png', 'a file')}")
    >>> print(error, "|", resolved(f"{error}", shown=False))
    cannot read doe.png | cannot read a file
    """
    return f"{_START}{resolved(f'{text}', shown=True)}{_ELSE}{instead}{_END}"


def resolved(text: str, shown: bool) -> str:
    """Return a message without the marks of `private`: with the marked text if `shown`, else with its replacement."""
    return _MARKED.sub(r"\1" if shown else r"\2", text)


class InputError(ValueError):
    """An error in the user's input. The message says what is wrong, where, and what to do; the command exits with 2.

    ``str()`` returns the whole message. In an f-string, `private` parts stay marked, so that a message that quotes
    another one can still be printed without them.
    """

    def __init__(self, message: object = "") -> None:
        self.marked = f"{message}"
        super().__init__(resolved(self.marked, shown=True))

    def __format__(self, spec: str) -> str:
        return format(self.marked, spec)

    def __reduce__(self) -> tuple[type[InputError], tuple[str, ...]]:
        return type(self), (self.marked,)


class DivergedError(InputError):
    """A training produced values that are not finite: its step size or its noise is too large."""


class OutOfMemoryError(InputError):
    """The memory of the device or of this machine was not enough."""


def check_positive(**values: float) -> None:
    """Raise `InputError` for the first named value that is not a finite number above 0."""
    for name, value in values.items():
        if not 0 < value < inf:
            raise InputError(f"{name} is {value}: it must be a number above 0")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known name that was probably meant, or all known names.

    >>> nearest("LaplaceNose", ["GaussianNoise", "LaplaceNoise"])
    "did you mean 'LaplaceNoise'?"
    >>> nearest("modle", ["mode", "model"])
    "did you mean 'model'?"
    >>> nearest("x", ["labels", "order"])
    'known: labels, order'
    """
    known = list(known)
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(lower), cutoff=0.55)
    close.sort(key=lambda one: sorted(one) != sorted(name.lower()))  # swapped letters are the likeliest error
    return f"did you mean '{lower[close[0]]}'?" if close else "known: " + ", ".join(known)


def listed(problems: Sequence[str], most: int = 8) -> str:
    """Return problems as lines below an error message: the first `most` of them, and the number of others.

    >>> print("they do not fit:" + listed(["a: missing", "b: missing", "c: missing"], most=2))
    they do not fit:
      a: missing
      b: missing
      and 1 more
    """
    more = len(problems) - most
    lines = [*problems[:most], *([f"and {more} more"] if more > 0 else [])]
    return "".join(f"\n  {line}" for line in lines)
