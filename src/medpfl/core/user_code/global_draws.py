"""Repeatable draws for parts that use a global random generator instead of the one that they get."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded"]


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed the global generators of torch (CPU), NumPy and Python in this context, and restore them afterward.

    MedPFL's own parts draw from explicit generators alone. With this, a user's part that draws from a global one gives
    the same rows when a run is repeated or continued.

    Args:
        generator: the part's own CPU generator. Its state decides the seed; it is not advanced.
    """
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    seed = int(torch.randint(2**32, (), generator=copy))  # NumPy takes no larger one
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
