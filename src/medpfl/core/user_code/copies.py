"""Copy a network, or say why it cannot be copied and what to do."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.user_code.strangers import explained

__all__ = ["check_copies", "copied"]

_OLD_NORMS = {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm"}
"""Hooks of `torch.nn.utils`, and the functions that put them there."""


def copied(network: nn.Module, forget: bool = False) -> nn.Module:
    """Return a copy that shares nothing with the network.

    Args:
        network: the network.
        forget: leave out what a forward pass with gradients left in the network's attributes, such as the features
            that a model keeps for a heat map: they are ``None`` in the copy. They cannot be copied, and may tell of
            the images that made them.

    Raises:
        InputError: it cannot be copied; with the layer and what to do.
    """
    check_copies(network)
    try:
        with explained("copy.deepcopy"):
            return copy.deepcopy(network, _kept(network) if forget else {})
    except InputError as error:
        raise InputError(
            f"the model cannot be copied, and each client and the server need a copy, because of {_culprit(network)}: "
            f"{error}; let it keep no tensor that was computed with gradients, no open file, lock or generator"
        ) from error


def check_copies(network: nn.Module) -> None:
    """Raise `InputError` for layers that no copy works with: TorchScript, and norms of weights that are hooks."""
    for name, module in network.named_modules():
        where = f"layer '{name}'" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{where} is TorchScript, which takes no hooks and has no source to differentiate: give the Python "
                "class that it was made from, and its weights as --weights"
            )
        for hook in module._forward_pre_hooks.values():
            kind = type(hook)
            if kind.__name__ in _OLD_NORMS and kind.__module__.startswith("torch.nn.utils."):
                old = _OLD_NORMS[kind.__name__]
                raise InputError(
                    f"{where} has torch.nn.utils.{old}, which cannot be copied or differentiated here: use "
                    f"torch.nn.utils.parametrizations.{old} in its place, or call torch.nn.utils.remove_{old} first"
                )


def _kept(network: nn.Module) -> dict[int, Any]:
    """Return the memo that makes `copy.deepcopy` put ``None`` for tensors that belong to a graph of gradients."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        own = {id(t) for group in (module._parameters, module._buffers) for t in group.values()}
        for tensor in _tensors(vars(module)):
            if id(tensor) not in own and _in_graph(tensor):
                memo[id(tensor)] = None
    return memo


def _in_graph(tensor: Tensor) -> bool:
    inside = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # type: ignore[attr-defined]  (no stub has it)
    return inside or not tensor.is_leaf


def _tensors(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """The tensors in a value and in lists and dictionaries inside it."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one, depth - 1)


def _culprit(network: nn.Module) -> str:
    """The attribute of the innermost module that cannot be copied."""
    for name, module in reversed(list(network.named_modules())):
        for key, value in vars(module).items():
            if key == "_modules":
                continue
            try:
                with explained(key):
                    copy.deepcopy(value)
            except InputError:
                return f"'{key}' of layer '{name}' ({type(module).__name__})" if name else f"its '{key}'"
    return f"the class {type(network).__name__}"
