"""Lets a search keep iterates where an auditor asks for them, without knowing what becomes of them.

Which iterate is nearest to the truth is for the auditor alone to say: a search only keeps them, by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Keeper = Callable[[Tensor, Tensor], None]

__all__ = ["keeping", "step", "traced", "tracing"]

_most: ContextVar[int] = ContextVar("most", default=0)
_keeper: ContextVar[Keeper | None] = ContextVar("keeper", default=None)


@contextmanager
def tracing(most: int) -> Iterator[None]:
    """Within it, searches keep about so many iterates of each start; 0: none."""
    token = _most.set(most)
    try:
        yield
    finally:
        _most.reset(token)


def traced() -> int:
    """How many iterates of each start are asked for."""
    return _most.get()


@contextmanager
def keeping(keeper: Keeper | None) -> Iterator[None]:
    """Within it, `step` calls `keeper`."""
    token = _keeper.set(keeper)
    try:
        yield
    finally:
        _keeper.reset(token)


def step(rows: Tensor, z: Tensor) -> None:
    """Says that problems `rows` (A,) have come to the points `z` (A, D)."""
    keeper = _keeper.get()
    if keeper is not None:
        keeper(rows, z)
