"""Running of third-party code, with every exception turned into an error for the user who supplied the code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medpfl.core.errors import InputError, OutOfMemoryError
from medpfl.core.user_code.modules import own_line, quoted

__all__ = ["explained", "hint", "reason"]

_HINTS = {
    "value per channel": "; in train mode batch norm needs more values: try mode eval or larger images",
    "should be the same": "; images are float32: let the model begin with images.to(the type of its weights)",
    "saved tensor hooks": "; the model uses activation checkpointing, which saves memory and changes no result: switch "
    "it off (use_checkpoint=False, memory_efficient=False)",
    "mutate a captured Tensor": "; the forward pass writes into a tensor that the model keeps: compute a new one, or "
    "leave it out",
    "inplace arithmetic on self": "; the forward pass writes into a tensor that the model keeps: compute a new one, or "
    "leave it out",
}
"""Remedies, by a part of torch's error message."""

_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
"""Class names of Python's and torch's out-of-memory errors; torch is not imported here."""


@contextmanager
def explained(what: str, named: bool = False) -> Iterator[None]:
    """Turn every exception in the ``with`` block into an `InputError` whose message begins with `what`.

    This includes ``SystemExit`` and every other ``BaseException``: a third party's ``sys.exit(0)`` would otherwise end
    the command as if it had succeeded. The only exception is Ctrl-C, which still raises ``KeyboardInterrupt``, even if
    the third-party code catches it and raises something else. An `InputError` passes unchanged.

    Args:
        what: the part that failed and its task, such as ``"iDLG() cannot attack this model"``.
        named: True if the message also names the error's class, as it should for an import.

    Raises:
        InputError: the block failed; an `OutOfMemoryError` if the memory was not enough.
        KeyboardInterrupt: the user pressed Ctrl-C meanwhile.
    """
    with _interrupts() as pressed:
        try:
            yield
        except InputError:
            raise
        except BaseException as error:
            if pressed:
                raise KeyboardInterrupt from error
            said, kind = reason(error), type(error).__name__
            if kind in _OUT_OF_MEMORY or "out of memory" in said or "allocate memory" in said:
                raise OutOfMemoryError("out of memory: lower --memory, --batch-size or --size") from error
            if named and kind not in said:
                said = f"{kind}: {said}"
            remedy = hint(error)
            said = said.rstrip(".") if remedy else said
            if not isinstance(error, SystemExit) or isinstance(error.code, str):  # a status names nobody
                said = quoted(error, said, named=True)
            raise InputError(f"{what}: {said}{own_line(error)}{remedy}") from error


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Record every Ctrl-C in a list, and pass it on to the previous handler.

    Only this distinguishes a user's Ctrl-C from a ``raise KeyboardInterrupt``. Only the main thread gets signals.
    """
    before: Any = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield []
        return
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's class if it has none.

    The message of a `KeyError` is a key alone, so its class stands before it.

    >>> reason(RuntimeError("shapes differ\\nhere: ...")), reason(ValueError()), reason(SystemExit(0))
    ('shapes differ', 'ValueError', 'it ended the program (SystemExit: 0)')
    >>> print(reason(KeyError("weight")))
    KeyError: 'weight'
    """
    kind = type(error).__name__
    try:
        text = str(error).strip().partition("\n")[0].partition(" Please open an issue")[0]  # torch's, not with us
    except BaseException:  # a third-party error class may fail here too
        text = ""
    if isinstance(error, SystemExit):
        return f"it ended the program ({kind}: {text})" if text else f"it ended the program ({kind})"
    if not isinstance(error, Exception):
        return f"it raised {kind}: {text}" if text else f"it raised {kind}"
    return f"{kind}: {text}" if text and isinstance(error, KeyError) else text or kind


def hint(error: BaseException) -> str:
    """Return a remedy for an error from torch, as the end of a message; ``""`` if none is known."""
    try:
        text = str(error)
    except BaseException:  # as in `reason`
        return ""
    return next((remedy for said, remedy in _HINTS.items() if said in text), "")
