"""Copies of networks, and errors that explain why a network cannot be copied."""

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
"""Hook classes in `torch.nn.utils`, and the functions that install them."""


def copied(network: nn.Module, forget: bool = False) -> nn.Module:
    """Return a copy that shares nothing with the network.

    Args:
        network: the network.
        forget: True replaces tensors that a forward pass with gradients left in the network's attributes by ``None`` in
            the copy, such as features kept for a heat map. They cannot be copied, and may reveal the images.

    Raises:
        InputError: the network cannot be copied; the message names the layer and a remedy.
    """
    check_copies(network)
    try:
        with explained("copy.deepcopy"):
            return copy.deepcopy(network, _kept(network) if forget else {})
    except InputError as error:
        raise InputError(
            f"the model cannot be copied because of {_culprit(network)}: {error}; each client and the server need a "
            "copy, so the model must not keep tensors computed with gradients, open files, locks or generators"
        ) from error


def check_copies(network: nn.Module) -> None:
    """Raise `InputError` for layers that cannot be copied: TorchScript, and weight norms implemented as hooks."""
    for name, module in network.named_modules():
        where = f"layer '{name}'" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{where} is TorchScript, which supports no hooks and cannot be differentiated here: give the Python "
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
    """Return a memo that makes `copy.deepcopy` replace tensors in an autograd graph by ``None``."""
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
    """Yield the tensors in a value, including those in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one, depth - 1)


def _culprit(network: nn.Module) -> str:
    """Return a description of the innermost module's attribute that cannot be copied."""
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
