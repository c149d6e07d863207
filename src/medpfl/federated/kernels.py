"""Which of PyTorch's kernels may be used where an attacker differentiates twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["differentiable_kernels"]


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Attention by its formula.

    The fused kernels have no second derivative, and in eval mode PyTorch's own layers take one without even a first,
    wherever no weight of theirs asks for a gradient.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
