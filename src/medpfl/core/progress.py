"""Progress reports from long work to an unknown listener."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["listening", "part", "report"]

_listener: ContextVar[Callable[[float], None] | None] = ContextVar("listener", default=None)


def report(done: float) -> None:
    """Report that a share (0 to 1) of the current work is done."""
    listener = _listener.get()
    if listener is not None:
        listener(done)


@contextmanager
def listening(listener: Callable[[float], None]) -> Iterator[None]:
    """Make `report` call `listener` in this context."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def part(first: float, last: float) -> Iterator[None]:
    """Map reports in this context to the share of the outer work from `first` to `last`."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    with listening(lambda done: listener(first + done * (last - first))):
        yield
