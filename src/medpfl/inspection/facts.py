"""Facts about a network that matter to an update, from its modules and one forward pass."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

__all__ = ["facts_of"]

_KINDS: dict[str, Any] = {
    "batch norm": _BatchNorm,
    "instance norm": _InstanceNorm,
    "group norm": nn.GroupNorm,
    "layer norm": nn.LayerNorm,
    "dropout": _DropoutNd,
}
_ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")


def facts_of(network: nn.Module, images: Tensor) -> dict[str, Any]:
    """Return facts about a network, as numbers and names.

    Args:
        network: the network, in the client's mode; it is not changed.
        images: images (N, ...) that it takes.

    Returns:
        ``parameters`` and ``trained``: numbers of elements; ``frozen``, ``without_gradient`` and ``tied`` (names that
        share a tensor): parameter names; ``layers``: number of layers by kind; ``attention``: attention calls in
        one pass; ``returns``: number of outputs, one of which is used; ``slowest``: the kind of layer that takes most
        of a forward pass, and its share.
    """
    state = {k: v.clone() for k, v in network.state_dict().items()}
    try:
        with torch.random.fork_rng(devices=[]):
            return {
                "parameters": sum(p.numel() for p in network.parameters()),
                "trained": sum(p.numel() for p in network.parameters() if p.requires_grad),
                "frozen": [name for name, p in network.named_parameters() if not p.requires_grad],
                "without_gradient": _without_gradient(network, images),
                "tied": _tied(network),
                "layers": _layers(network),
                "attention": _attention(network, images),
                "returns": _returns(network, images),
                "slowest": _slowest(network, images),
            }
    finally:
        network.load_state_dict(state)  # passes in train mode move running statistics


def _layers(network: nn.Module) -> dict[str, int]:
    counts = {kind: sum(isinstance(m, types) for m in network.modules()) for kind, types in _KINDS.items()}
    return {kind: count for kind, count in counts.items() if count}


def _tied(network: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [same for same in names.values() if len(same) > 1]


def _without_gradient(network: nn.Module, images: Tensor) -> list[str]:
    """Return trained parameters that the outputs do not depend on: their update is always zero."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    total = network(images).square().sum()
    slopes = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    return [name for name, slope in zip(trained, slopes, strict=True) if slope is None]


class _Attention(TorchFunctionMode):
    """A counter for attention calls, as a layer or as a function."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += getattr(func, "__name__", "") in _ATTENTION
        return func(*args, **(kwargs or {}))


def _attention(network: nn.Module, images: Tensor) -> int:
    with _Attention() as mode:  # with gradients: without them, PyTorch's layer takes another path
        network(images)
    return mode.calls


def _returns(network: nn.Module, images: Tensor) -> int:
    """Count the outputs of `forward`, called directly so that no hook selects one of them."""
    with torch.no_grad():
        output = network.forward(images)
    return len(output) if isinstance(output, tuple | list | Mapping) else 1


def _slowest(network: nn.Module, images: Tensor) -> tuple[str, float] | None:
    spent: dict[str, float] = defaultdict(float)
    with torch.no_grad(), _timed(network, spent):
        network(images)
    kind, most = max(spent.items(), key=lambda item: item[1], default=("", 0.0))
    return (kind, most / sum(spent.values())) if most else None


@contextmanager
def _timed(network: nn.Module, spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds that each kind of leaf layer takes."""
    started: dict[nn.Module, float] = {}

    def before(module: nn.Module, _: Any) -> None:
        started[module] = time.perf_counter()

    def after(module: nn.Module, _: Any, __: Any) -> None:
        spent[type(module).__name__] += time.perf_counter() - started[module]

    leaves = [m for m in network.modules() if not list(m.children())]
    handles = [m.register_forward_pre_hook(before) for m in leaves] + [m.register_forward_hook(after) for m in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
