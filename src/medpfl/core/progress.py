"""Progress reports from long work to an unknown listener. Does not import torch.

Work says three things: its phase (`phase`), how much of it is done (`report`), and, if it knows, how many seconds other
work will take afterward (`later`). Nobody need listen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["during", "later", "listening", "part", "phase", "report", "seconds_later"]

Listener = Callable[[float, Callable[[], str]], None]
"""Callback with the share that is done (0 to 1) and a function that describes it, such as ``"step 3 of 100"``."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_phases: list[str] = []
_later: list[Callable[[], float | None]] = []


def report(done: float, said: Callable[[], str] = str) -> None:
    """Report that a share (0 to 1) of the current work is done; `said` describes it, and is called only if shown."""
    listener = _listener.get()
    if listener is not None:
        listener(done, said)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
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
    with listening(lambda done, said: listener(first + done * (last - first), said)):
        yield


@contextmanager
def phase(what: str) -> Iterator[None]:
    """Name the work in this context, such as ``"reading the images"``; phases may contain others."""
    _phases.append(what)
    try:
        yield
    finally:
        _phases.pop()


def during() -> str:
    """Return the current phases, from the outermost to the innermost; ``""`` if there is none."""
    return ": ".join(_phases)


@contextmanager
def later(seconds: Callable[[], float | None]) -> Iterator[None]:
    """State how many seconds other work will take after the work in this context; ``None`` if that is unknown."""
    _later.append(seconds)
    try:
        yield
    finally:
        _later.pop()


def seconds_later() -> float | None:
    """Return the seconds of all work that `later` announced, or ``None`` if some is unknown."""
    known = [seconds() for seconds in _later]
    return None if None in known else sum(filter(None, known))
