"""Shared code of defenses that show the server only the mean of several clients' updates."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medpfl.core.plan import Plan
from medpfl.core.types import Channel, Tensors, Update

__all__ = ["clients_of", "filled", "flattened", "of_mean"]


def flattened(update: Update) -> Tensor:
    """Return all averaged values, (size,) in float64 on the CPU: the tensors, then the floating-point buffers."""
    return torch.cat([t.detach().double().flatten().cpu() for t in _floats(update).values()])


def filled(values: Tensor, like: Update) -> Update:
    """Copy `like`, with its floating-point values replaced by `values` (size,)."""
    floats = _floats(like)
    parts = values.split([t.numel() for t in floats.values()])
    found = {name: part.view_as(t).to(t) for part, (name, t) in zip(parts, floats.items(), strict=True)}
    buffers = like.buffers
    if buffers is not None:
        buffers = {name: found.get(f"buffer {name}", t) for name, t in buffers.items()}
    return replace(like, tensors={name: found[name] for name in like.tensors}, buffers=buffers)


def clients_of(mean: Update, plan: Plan | None) -> int:
    """Estimate how many clients a mean is over: `num_samples` over the images per client; 1 if either is unknown."""
    return max(round((mean.num_samples or 1) / plan.images), 1) if plan else 1


def of_mean(before: Channel | None, clients: int) -> Channel:
    """Convert the channel for each client's update into the channel for their mean.

    Averaging divides the noise variance by `clients`. Bounds are dropped, because bounds inferred from single updates
    do not hold for a mean. The mean of several Laplace draws no longer counts as Laplace noise.
    """
    known = before or Channel()
    averaged = None if known.precision is None else {k: clients * t for k, t in known.precision.items()}
    return replace(known, precision=averaged, bounds=None, laplace=known.laplace and clients == 1)


def _floats(update: Update) -> Tensors:
    """Return the averaged tensors by name; buffer names get the prefix ``"buffer "``."""
    buffers = {f"buffer {k}": v for k, v in (update.buffers or {}).items() if v.is_floating_point()}
    return {**update.tensors, **buffers}
