"""Number of threads with which torch computes. Results depend on it in their last digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["set_threads", "threads"]


def set_threads(count: int) -> int:
    """Make torch compute with a number of threads in this process; return the number before."""
    import torch  # not at the top: the parent of workers may not need it

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    return before


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Make torch compute with a number of threads while the context lasts."""
    before = set_threads(count)
    try:
        yield
    finally:
        set_threads(before)
