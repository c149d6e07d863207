"""PyTorch kernels that an attacker can differentiate twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["differentiable_kernels", "plain_recurrence"]


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Compute attention with PyTorch's plain formula inside this context.

    The fused kernels have no second derivative. In eval mode, PyTorch's own attention layers even use a kernel without
    a first derivative if none of their weights requires a gradient.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def plain_recurrence(network: nn.Module) -> nn.Module:
    """Switch the recurrent layers to PyTorch's own kernels, in place, and return the network.

    oneDNN's LSTM has no second derivative, nor do cuDNN's LSTM, GRU and RNN. Only these layers lose their fast
    kernels; convolutions keep theirs. The zero initial state is made from the input, so that the kernels can write
    into it under ``vmap``.
    """
    for module in network.modules():
        if isinstance(module, nn.RNNBase) and not any(isinstance(h, _Plain) for h in module._forward_hooks.values()):
            switch = _Plain()
            module.register_forward_pre_hook(switch.off, with_kwargs=True)
            module.register_forward_hook(switch, always_call=True)  # after an error too
    return network


class _Plain:
    """Hooks that switch the fast kernels off before a layer, and on again after it."""

    def __init__(self) -> None:
        self.before: list[tuple[bool, bool]] = []

    def off(self, layer: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.before.append((torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()))
        torch._C._set_mkldnn_enabled(False)
        torch._C._set_cudnn_enabled(False)
        given = [*args, *kwargs.values()]
        if len(given) == 1 and isinstance(given[0], Tensor):
            return (given[0], _start(layer, given[0])), {}
        return args, kwargs

    def __call__(self, _: nn.Module, __: Any, ___: Any) -> None:
        if self.before:
            mkldnn, cudnn = self.before.pop()
            torch._C._set_mkldnn_enabled(mkldnn)
            torch._C._set_cudnn_enabled(cudnn)


def _start(layer: nn.RNNBase, x: Tensor) -> Any:
    """Return a layer's zero initial state: (layers, N, width), or (layers, width) for a single sequence."""
    layers = layer.num_layers * (2 if layer.bidirectional else 1)
    batch = x.shape[:-2] if x.ndim == 2 else x.shape[0 if layer.batch_first else 1 :][:1]
    hidden = x.new_zeros((layers, *batch, layer.proj_size or layer.hidden_size))
    return (hidden, x.new_zeros((layers, *batch, layer.hidden_size))) if isinstance(layer, nn.LSTM) else hidden
