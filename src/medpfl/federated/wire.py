"""The traffic from a client to the server."""

from __future__ import annotations

import torch
from torch import Tensor

from medpfl.core.types import Update

__all__ = ["wire_bytes"]

_INDEX = 4
"""Bytes per coordinate position."""


def wire_bytes(update: Update, masked: bool = False) -> int:
    """Return the number of bytes that a client sends, with each tensor in the shortest of three plain encodings.

    The encodings are: all values; positions and values of the nonzero elements; a list of the distinct values, plus as
    many bits per coordinate as tell them apart. Nothing is compressed further: entropy coding would save more.

    Args:
        update: one client's update.
        masked: whether secure aggregation makes every coordinate its own random integer, so that all values are sent.
    """
    tensors = [t if masked else _shortest(t) for t in update.tensors.values()]
    beside = [b.numel() * b.element_size() for b in (update.buffers or {}).values()]
    number = 0 if update.num_samples is None else 8
    return sum(t if isinstance(t, int) else _all(t) for t in tensors) + sum(beside) + number


def _all(values: Tensor) -> int:
    return values.numel() * values.element_size()


def _shortest(values: Tensor) -> int:
    sparse = int(values.count_nonzero()) * (values.element_size() + _INDEX)
    distinct = len(torch.unique(values))
    coded = distinct * values.element_size() + -(-values.numel() * max(1, (distinct - 1).bit_length()) // 8)
    return min(_all(values), sparse, coded)
