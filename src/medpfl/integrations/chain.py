"""Names of filters and mods with their arguments, and of arrays that travel by position."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from medpfl.core.experiments.limits import NAME, SPEC
from medpfl.models.wrapped import innermost

__all__ = ["described", "named", "noticed"]

_SHOWN = (bool, int, float, type(None))


def described(part: Any) -> str:
    """Return a filter's or mod's name with its arguments, as in ``LocalDpMod(clipping_norm=1.0)``.

    A part of MedPFL states its own text in its attribute ``spec``. For an object, the arguments are the parameters of
    its constructor that it keeps under their own names.
    """
    if isinstance(own := getattr(part, "spec", None), str):
        return own[:SPEC]
    if inspect.isroutine(part):
        return part.__name__[:NAME]
    try:
        known = inspect.signature(type(part)).parameters
    except (TypeError, ValueError):
        known = {}
    held = {name: getattr(part, name) for name in known if hasattr(part, name)}
    told = [f"{name}={_plain(value)!r}" for name, value in held.items() if _is_plain(value)]
    return f"{type(part).__name__}({', '.join(told)})"[:SPEC]


def _plain(value: Any) -> Any:
    """Return a value with its enumerations' members replaced by their own values."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.value if isinstance(value, Enum) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 10 and all(_is_plain(one) for one in value)
    return isinstance(value, _SHOWN) or (isinstance(value, str) and len(value) <= NAME)


def named(state: Mapping[str, Tensor], model: nn.Module | None) -> dict[str, Tensor]:
    """Return the state under the model's own names if its entries are numbered in the order of the state dict.

    Otherwise, or if the model is unknown or has other shapes, the names stay.
    """
    numbered = sorted(state, key=lambda name: int(name) if name.isdecimal() else -1)
    if model is None or not state or not all(name.isdecimal() for name in state):
        return dict(state)
    own = model.state_dict()
    if [t.shape for t in own.values()] != [state[name].shape for name in numbered]:
        return dict(state)
    return {name: state[number] for name, number in zip(own, numbered, strict=True)}


@contextmanager
def noticed() -> Iterator[list[nn.Module]]:
    """Yield a list that gets the first module that is called with gradients in the body: the trained model."""
    seen: list[nn.Module] = []

    def before(module: nn.Module, _: Any) -> None:
        if not seen and torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
            seen.append(innermost(module))

    hook = register_module_forward_pre_hook(before)
    try:
        yield seen
    finally:
        hook.remove()
