"""Removal of wrappers that a training script put around a network."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["unwrapped"]


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside ``DataParallel``, ``DistributedDataParallel``, ``torch.compile`` and Opacus' wrapper.

    Wrappers compute the same as the network inside. Their own machinery (devices, processes, hooks that keep
    per-sample gradients) does not work within `torch.func`, which computes updates here.
    """
    while (inner := _inside(network)) is not None:
        network = inner
    return network


def _inside(network: Any) -> nn.Module | None:
    kind = type(network)
    if isinstance(network, DataParallel | DistributedDataParallel):
        return network.module
    if kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch."):
        return network._orig_mod
    if any(base.__module__.startswith("opacus.grad_sample.") for base in kind.__mro__):  # by name: an extra
        bare = copy.deepcopy(network)  # the user's own keeps its hooks
        bare.remove_hooks()
        return bare._module
    return None
