"""The training state between rounds as one safetensors file: tensors, and their structure in JSON. Never pickle."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.federated.training import Standing

__all__ = ["packed", "unpacked"]

_TREE = "medpfl-state"
_TENSOR = "$tensor"


def packed(standing: Standing) -> bytes:
    """Return the bytes for a training state, without the weights.

    Raises:
        InputError: if a defense keeps state other than tensors, numbers, texts, lists and dictionaries.
    """
    tensors: dict[str, Tensor] = {}
    tree = _leaves({f.name: getattr(standing, f.name) for f in fields(standing) if f.name != "weights"}, tensors)
    return save(tensors, {_TREE: json.dumps(tree)})


def unpacked(path: Path) -> dict[str, Any]:
    """Return the fields of a saved training state, without the weights.

    Raises:
        InputError: if the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            tree = json.loads((file.metadata() or {})[_TREE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        found = _whole(tree, tensors)
        return {**found, "clients": tuple(found["clients"]), "taken": tuple(found["taken"])}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"'{path}' is not a training state, or it is damaged: {error}") from None


def _leaves(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the value as JSON, with its tensors moved into `tensors` and replaced by their numbers."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {str(key): _leaves(one, tensors) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_leaves(one, tensors) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"a defense keeps a {type(value).__name__} in its state: only tensors, numbers and texts can be saved"
    )


def _whole(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _whole(one, tensors) for key, one in value.items()}
    return [_whole(one, tensors) for one in value] if isinstance(value, list) else value
