"""Stacks of victims: picking some of them, and search variables for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medpfl.core.types import Observation

__all__ = ["pick", "variables_like"]


def pick(tree: Any, index: Tensor | int) -> Any:
    """Index every tensor in a tree along its first axis, that of the victims. An integer index makes no copy.

    A tree is a tensor, a mapping of trees (returned as a dict) or a sequence of trees (returned as a list).
    """
    if isinstance(tree, Tensor):
        return tree[index]
    if isinstance(tree, Mapping):
        return {key: pick(value, index) for key, value in tree.items()}
    return [pick(value, index) for value in tree]


def variables_like(seen: Observation) -> Tensor:
    """Return an empty scalar with the variables' device and dtype: those of the model's weights, at least float32."""
    weight = next(iter(seen.views[0].weights.parameters.values()))
    return weight.new_empty((), dtype=torch.promote_types(weight.dtype, torch.float32))
