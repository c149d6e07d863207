"""Removal of wrappers that a training script put around a network."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["innermost", "unwrapped"]


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside ``DataParallel``, ``DistributedDataParallel``, ``torch.compile`` and Opacus' wrapper.

    Wrappers compute the same as the network inside. Their own machinery (devices, processes, hooks that keep
    per-sample gradients) does not work within `torch.func`, which computes updates here.
    """
    bare = innermost(network)
    if not any(_is_of_opacus(wrapper) for wrapper in _wrappers(network)):
        return bare
    network = copy.deepcopy(network)  # the user's own keeps its hooks
    for wrapper in filter(_is_of_opacus, _wrappers(network)):
        wrapper.remove_hooks()
    return innermost(network)


def innermost(network: nn.Module) -> nn.Module:
    """Return the network inside the same wrappers itself, with the hooks that a wrapper gave it."""
    return [network, *map(_inside, _wrappers(network))][-1]


def _wrappers(network: Any) -> list[Any]:
    found = []
    while (inner := _inside(network)) is not None:
        found.append(network)
        network = inner
    return found


def _inside(network: Any) -> Any:
    kind = type(network)
    if isinstance(network, DataParallel | DistributedDataParallel):
        return network.module
    if kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch."):
        return network._orig_mod
    return network._module if _is_of_opacus(network) else None


def _is_of_opacus(network: Any) -> bool:  # by name: an extra
    return any(base.__module__.startswith("opacus.grad_sample.") for base in type(network).__mro__)
