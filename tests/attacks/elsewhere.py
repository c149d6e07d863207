"""A simulated second device for any machine: its tensors claim another device, compute on the CPU, and refuse mixing.

It refuses the same as a GPU: operations on tensors from both devices, unless the CPU tensors are scalars or indices,
and random draws for the device from a CPU generator. Tests thus show whether code handles devices correctly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from medpfl.core.types import Observation, View, Weights

DEVICE = torch.device("meta")
"""Stands for the other device: a name that torch knows and that this package uses for nothing."""

_COPIES = ("aten::_to_copy", "aten::copy_")
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_JOINED = ("aten::cat", "aten::stack")


class Elsewhere(Tensor):
    """A tensor on the other device, backed by a CPU tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor):
        kind = {"strides": inner.stride(), "dtype": inner.dtype, "device": DEVICE}
        made = Tensor._make_wrapper_subclass(cls, inner.shape, **kind)
        made.inner = inner
        return made

    def __repr__(self):
        return f"Elsewhere({self.inner})"

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class Watch(TorchDispatchMode):
    """A mode in which new tensors are created on the requested device."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def moved(seen: Observation) -> Observation:
    """Return the observation on the other device."""
    return replace(seen, views=tuple(_view(view) for view in seen.views), labels=_there(seen.labels))


def _view(view: View) -> View:
    weights = Weights(_there(view.weights.parameters), _there(view.weights.buffers))
    channel = view.channel
    if channel is not None:
        channel = replace(
            channel, **{name: _there(getattr(channel, name)) for name in ("precision", "bounds", "known")}
        )
    return replace(view, weights=weights, update=view.update.replace(_there(view.update.tensors)), channel=channel)


def _there(value):
    return tree_map(lambda t: Elsewhere(t) if isinstance(t, Tensor) else t, value)


def _run(operation, args, kwargs):
    name, asked = operation._schema.name, kwargs.get("device")
    tensors = list[Tensor]()
    _each(tensors.append, (*args, *kwargs.values()))
    there = [t for t in tensors if isinstance(t, Elsewhere)]
    if there and name not in _COPIES:
        _check(name, tensors, args)
    if asked is not None and torch.device(asked) == DEVICE and kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: a generator of the CPU draws for another device")
    result_there = torch.device(asked) == DEVICE if asked is not None else bool(there)
    if name == "aten::copy_":
        result_there = isinstance(args[0], Elsewhere)
    here = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    inner = operation(*_each(_inner, args), **_each(_inner, here))
    if not result_there:
        return inner
    known = {id(t.inner): t for t in there}  # what is written in place stays the tensor that it was

    return _each(lambda made: known[id(made)] if id(made) in known else Elsewhere(made), inner)


def _check(name: str, tensors: list[Tensor], args) -> None:
    """Raise the error that a GPU would."""
    here = [t for t in tensors if not isinstance(t, Elsewhere)]
    if name in _INDEXED and isinstance(args[0], Elsewhere):
        here = [t for t in here if t.dtype not in (torch.long, torch.bool)]
    elif name not in (*_INDEXED, *_JOINED):
        written = args[0] if name.endswith("_") else None
        here = [t for t in here if t.ndim or t is written]
    if here:
        raise RuntimeError(f"{name}: tensors of two devices, of the CPU {[tuple(t.shape) for t in here]}")


def _inner(tensor: Tensor) -> Tensor:
    return tensor.inner if isinstance(tensor, Elsewhere) else tensor


def _each(change: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to the tensors of an operation's arguments or results, in under half of `tree_map`'s time."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(_each(change, one) for one in value)
    return {name: _each(change, one) for name, one in value.items()} if isinstance(value, dict) else value
