"""Stacks of victims: one of many, and search variables for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medpfl.core.types import Observation

__all__ = ["pick", "variables_like"]


def pick(tree: Any, index: Tensor | int) -> Any:
    """The same tree with every tensor indexed along its victim axis; a number makes no copy."""
    if isinstance(tree, Tensor):
        return tree[index]
    if isinstance(tree, Mapping):
        return {key: pick(value, index) for key, value in tree.items()}
    return [pick(value, index) for value in tree]


def variables_like(seen: Observation) -> Tensor:
    """What the variables are like, in type and device: the model's weights, in float32 at least."""
    weight = next(iter(seen.views[0].weights.parameters.values()))
    return weight.new_empty((), dtype=torch.promote_types(weight.dtype, torch.float32))
