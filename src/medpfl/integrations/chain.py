"""Names of filters and mods with their arguments, and of arrays that travel by position."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from medpfl.core.experiments.limits import NAME, SPEC
from medpfl.inputs.filters import STOCK
from medpfl.models.wrapped import innermost

__all__ = ["described", "named", "noticed"]

_OURS, _THEIRS = ("medpfl.",), ("flwr.", "nvflare.")
"""Beginnings of the names of modules with MedPFL's parts, and with the frameworks' own filters."""

_WORD = re.compile(r"[A-Za-z0-9_]{0,40}")
"""A text that can be a choice."""

_NOT_WRITTEN = "..."


def described(part: Any) -> str:
    """Return a filter's or mod's name with its arguments, as in ``LocalDpMod(clipping_norm=1.0)``.

    A part of MedPFL states its own text in its attribute ``spec``. For another object, the arguments are the parameters
    of its constructor that it keeps under their own names. Only numbers are written, and words if the filter is the
    framework's own and known here: a text may name a hospital, a path or a patient. Every other value is ``...``. A
    part that only has the name of a known filter is called ``own.NAME``.
    """
    kind: Any = part if inspect.isroutine(part) else type(part)
    module, name = str(getattr(kind, "__module__", "")), kind.__name__[:NAME]
    if module.startswith(_OURS) and isinstance(own := getattr(part, "spec", None), str):
        return own[:SPEC]
    known = name in STOCK and module.startswith(_THEIRS)
    name = f"own.{name}" if name in STOCK and not known else name
    if inspect.isroutine(part):
        return name
    told = [f"{key}={_written(getattr(part, key, part), words=known)}" for key in _arguments(type(part))]
    return f"{name}({', '.join(told)})"[:SPEC]


def _arguments(kind: type) -> list[str]:
    try:
        return list(inspect.signature(kind).parameters)
    except (TypeError, ValueError):
        return []


def _written(value: Any, words: bool) -> str:
    """Return the text of an argument; ``...`` if it is neither a number nor, if `words` are allowed, a word."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple) and len(value) <= 10:
        return f"[{', '.join(_written(one, words) for one in value)}]"
    word = words and isinstance(value, str) and _WORD.fullmatch(value)
    if word or isinstance(value, bool | int | float | type(None)):
        return repr(value)
    return _NOT_WRITTEN


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
