"""How much travels from a client to the server."""

from __future__ import annotations

import torch
from torch import Tensor

from medpfl.core.types import Update

__all__ = ["wire_bytes"]

_INDEX = 4
"""Bytes of a coordinate's place."""


def wire_bytes(update: Update, masked: bool = False) -> int:
    """Bytes of what a client sends, each tensor in the shortest of three plain encodings.

    All values; places and values of those that are not zero; or a list of the distinct values, and for each
    coordinate as many bits as tell them apart. Nothing is compressed further: entropy coding would save more.

    Args:
        update: of one client.
        masked: under secure aggregation every coordinate is a random integer of its own: all values.
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
