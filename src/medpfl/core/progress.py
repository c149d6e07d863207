"""Lets long work say how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["listening", "part", "report"]

_listener: ContextVar[Callable[[float], None] | None] = ContextVar("listener", default=None)


def report(done: float) -> None:
    """Says that a share (0 to 1) of the present piece of work is done."""
    listener = _listener.get()
    if listener is not None:
        listener(done)


@contextmanager
def listening(listener: Callable[[float], None]) -> Iterator[None]:
    """Within it, `report` calls `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def part(first: float, last: float) -> Iterator[None]:
    """Within it, `report` counts for the share of the work from `first` to `last`."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    with listening(lambda done: listener(first + done * (last - first))):
        yield
