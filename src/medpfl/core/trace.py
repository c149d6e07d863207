"""Context variables by which an auditor asks a search to keep iterates.

The search selects iterates by their number alone. Only the auditor determines which is nearest to the target image.
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
    """Ask searches in this context to keep about `most` iterates of each restart; 0 keeps none."""
    token = _most.set(most)
    try:
        yield
    finally:
        _most.reset(token)


def traced() -> int:
    """Return the requested number of iterates per restart."""
    return _most.get()


@contextmanager
def keeping(keeper: Keeper | None) -> Iterator[None]:
    """Make `step` call `keeper` in this context."""
    token = _keeper.set(keeper)
    try:
        yield
    finally:
        _keeper.reset(token)


def step(rows: Tensor, z: Tensor) -> None:
    """Report that the problems `rows` (A,) have reached the points `z` (A, D)."""
    keeper = _keeper.get()
    if keeper is not None:
        keeper(rows, z)
