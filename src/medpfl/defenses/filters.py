"""Shared code of filters that federated-learning frameworks ship: they act on every array that a client sends."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.types import Channel, Tensors, Update

__all__ = ["clipped_channel", "clipped_values", "rebuilt", "sent_arrays"]

_BUFFER = "buffer "
"""Prefix of a buffer's name among the arrays."""

_LEAK = 1e-3
"""Slope of the disclosed clipping where it is saturated: matching needs a derivative there."""


def sent_arrays(update: Update) -> dict[str, Tensor]:
    """Return all arrays of an update by name: its tensors, and the differences of its buffers.

    Raises:
        InputError: the update has buffers, but not those before the round.
    """
    if not update.buffers:
        return dict(update.tensors)
    before = update.buffers_before
    missing = update.buffers.keys() - (before or {}).keys()
    if before is None or missing:
        what = "none" if before is None else f"no '{min(missing)}'"
        raise InputError(
            f"this defense acts on the change of the buffers, but the update has {what} in buffers_before: set it to "
            "the global model's buffers, or send no buffers"
        )
    moved = {_BUFFER + name: _number(t) - _number(before[name].to(t)) for name, t in update.buffers.items()}
    return {**update.tensors, **moved}


def rebuilt(update: Update, arrays: Tensors) -> Update:
    """Return the update with other arrays, which have the names of `sent_arrays`; buffers keep their dtypes."""
    tensors = {name: arrays[name].to(t) for name, t in update.tensors.items()}
    if not update.buffers or update.buffers_before is None:
        return update.replace(tensors)
    before = {name: _number(update.buffers_before[name].to(t)) for name, t in update.buffers.items()}
    buffers = {name: (before[name] + arrays[_BUFFER + name]).to(t) for name, t in update.buffers.items()}
    return replace(update, tensors=tensors, buffers=buffers)


def clipped_values(tensors: Tensors, limit: float) -> dict[str, Tensor]:
    """Clip every value to [-limit, limit]; tensors without axes stay as they are."""
    return {name: t.clamp(-limit, limit) if t.ndim else t for name, t in tensors.items()}


def clipped_channel(before: Channel | None, limit: float, **told: Tensors | bool | None) -> Channel:
    """Return a channel that clips every value, followed by the noise or the error in `told` (see `Channel.then`).

    Its `apply` keeps a small slope beyond the limit, so that gradient matching finds its way back. The error that this
    makes grows only with the logarithm of the value.
    """

    def apply(tensors: Tensors) -> Tensors:
        return {name: _leaky(t, limit) if t.ndim else t for name, t in tensors.items()}

    channel = (before or Channel()).then(apply, **told)  # type: ignore[arg-type]  (its own arguments)
    return channel if before else replace(channel, exact=lambda tensors: clipped_values(tensors, limit))


def _leaky(values: Tensor, limit: float) -> Tensor:
    inside = values.clamp(-limit, limit)
    return inside + _LEAK * limit * torch.asinh((values - inside) / limit)


def _number(t: Tensor) -> Tensor:
    """Return a tensor of numbers: truth values have no difference."""
    return t.long() if t.dtype == torch.bool else t
