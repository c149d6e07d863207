"""Preparation of a model for `local_update`: functional, twice differentiable, and compatible with ``vmap``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd

import torch
from torch import Tensor, nn
from torch.func import replace_all_batch_norm_modules_
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from medpfl.core.drawn_layers import set_layer
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Tensors
from medpfl.core.user_code.copies import copied
from medpfl.federated.draws import Dropout
from medpfl.federated.kernels import plain_recurrence

__all__ = ["batch_norms", "check_separable", "prepare", "running_statistics", "state_of", "track_statistics"]

Statistics = dict[str, list[tuple[Tensor, Tensor]]]


def prepare(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the model in the plan's mode.

    In train mode, batch norm keeps no running statistics (its output does not use them, and ``vmap`` forbids writing
    them in place), and dropout takes its masks as an input. Recurrent layers use kernels that can be differentiated
    twice, in both modes. Eval mode changes nothing else.

    Raises:
        InputError: if the model cannot be copied, or a layer's behavior in train mode cannot be repeated.
    """
    ready = plain_recurrence(copied(model, forget=True)).train(plan.mode == "train")
    if ready.training:
        replace_all_batch_norm_modules_(ready)
        for name, module in list(ready.named_modules()):
            _check_repeatable(name, module)
            if isinstance(module, nn.modules.dropout._DropoutNd):
                set_layer(ready, name, Dropout(module))
    return ready


def _check_repeatable(name: str, module: nn.Module) -> None:
    tracks = isinstance(module, _InstanceNorm) and module.track_running_stats
    if tracks or isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout):
        what = "instance norm with running statistics" if tracks else "alpha dropout"
        raise InputError(f"layer '{name}': {what} cannot be repeated in train mode; use mode eval or another layer")


def check_separable(model: nn.Module) -> None:
    """Raise `InputError` if batch norm in train mode leaves a batch's images without gradients of their own."""
    for name, layer in batch_norms(model).items():
        channels = layer.num_features
        raise InputError(
            f"layer '{name}': batch norm in train mode mixes the images of a batch, so there are no "
            f"per-sample gradients; use mode eval, or torch.nn.GroupNorm({gcd(32, channels)}, {channels}) instead"
        )


def state_of(model: nn.Module, buffers: Tensors) -> dict[str, Tensor]:
    """Return the buffers and frozen parameters that the prepared model still uses."""
    return {k: v for k, v in buffers.items() if _takes(model, k)}


def _takes(model: nn.Module, name: str) -> bool:
    parent, _, child = name.rpartition(".")
    module = model.get_submodule(parent)
    return module._buffers.get(child) is not None or module._parameters.get(child) is not None


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms in train mode by name: they mix the images of a batch."""
    return {k: m for k, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training}


@contextmanager
def track_statistics(model: nn.Module) -> Iterator[Statistics]:
    """Collect (mean, unbiased variance) for every batch that enters a batch norm in train mode."""
    seen: Statistics = {}
    handles = []
    for name, module in batch_norms(model).items():

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            x = inputs[0].detach()
            over = [0, *range(2, x.ndim)]
            seen.setdefault(name, []).append((x.mean(over), x.var(over)))

        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def running_statistics(model: nn.Module, before: Tensors, seen: Statistics) -> dict[str, Tensor]:
    """Return the buffers after the seen batches, by PyTorch's exponential (or cumulative) moving average."""
    after = dict(before)
    for name, module in batch_norms(model).items():
        if f"{name}.running_mean" not in before:
            continue
        for count, (mean, variance) in enumerate(seen.get(name, []), 1):
            batches = before[f"{name}.num_batches_tracked"] + count
            momentum = 1 / batches.double() if module.momentum is None else module.momentum
            rate = torch.as_tensor(momentum, dtype=torch.float64)
            for key, value in (("running_mean", mean), ("running_var", variance)):
                old = after[f"{name}.{key}"]
                after[f"{name}.{key}"] = torch.lerp(old, value.to(old), rate.to(old))
            after[f"{name}.num_batches_tracked"] = batches
    return after
