"""Operations in a `Graph` that a derivative can pass, whatever the values are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.fx import Node

from medpfl.attacks.deep.graph import SHAPES, Graph

__all__ = ["PLACEWISE", "SLOPES", "derivative", "is_affine", "is_scaled", "obstacle", "slope_at"]

_OPS = torch.ops.aten
PLACEWISE = {_OPS.add.Tensor, _OPS.sub.Tensor, _OPS.mul.Tensor, _OPS.div.Tensor, _OPS.native_batch_norm.default}
"""Affine operations whose outputs depend only on the input at the same channel and position."""

_AFFINE = PLACEWISE | {
    _OPS.addmm.default,
    _OPS.avg_pool2d.default,
    _OPS._adaptive_avg_pool2d.default,
    _OPS.cat.default,
    _OPS.clone.default,
    _OPS.constant_pad_nd.default,
    _OPS.convolution.default,
    _OPS.expand.default,
    _OPS.mean.dim,
    _OPS.permute.default,
    _OPS.select.int,
    _OPS.slice.Tensor,
    _OPS.squeeze.dim,
    _OPS.transpose.int,
    _OPS.unsqueeze.default,
    *SHAPES,
}
SLOPES: dict[Any, Callable[[Tensor], Tensor]] = {
    _OPS.sigmoid.default: lambda h: h * (1 - h),
    _OPS.tanh.default: lambda h: 1 - h.square(),
}
"""Slopes as functions of the output."""


def is_affine(graph: Graph, node: Node) -> bool:
    """Return True if a node is affine in all its inputs that depend on the image."""
    sources = graph.sources(node)
    if node.target in (_OPS.mul.Tensor, _OPS.div.Tensor):
        return sources == [node.args[0]] or (node.target is _OPS.mul.Tensor and len(sources) == 1)
    if node.target is _OPS.native_batch_norm.default:
        return not node.args[5]
    if node.target in (_OPS.convolution.default, _OPS.addmm.default):
        return sources == [node.args[node.target is _OPS.addmm.default]]
    return node.target in _AFFINE


def is_scaled(graph: Graph, node: Node) -> bool:
    """Return True if a node scales and shifts each value of one other node, or is one of its results."""
    placewise = node.target in PLACEWISE and is_affine(graph, node)
    return (placewise or node.target is operator.getitem) and len(graph.sources(node)) == 1


def derivative(graph: Graph, node: Node, pull: Tensor | None) -> Sequence[Tensor | None]:
    """Return the loss's derivatives with respect to an affine node's inputs, given the node's own.

    They are ``None`` if that is unknown.
    """
    sources = graph.sources(node)
    if pull is None:
        return [None] * len(sources)
    zeros = [pull.new_zeros(graph.shapes[s]) for s in sources]

    def function(*values: Tensor) -> Tensor:
        found = graph.call(node, dict(zip(sources, values, strict=True)))
        return found[0] if isinstance(found, tuple) else found

    return vjp(function, *zeros)[1](pull)


def slope_at(
    graph: Graph, node: Node, pull: Tensor | tuple[Tensor, ...], values: Mapping[Node, Any]
) -> Sequence[Tensor]:
    """Return the loss's derivatives with respect to a node's inputs, given its own and all of the inputs' values.

    The derivative of an operation with several results belongs to the first.
    """
    sources = graph.sources(node)

    def function(*own: Tensor) -> Tensor:
        found = graph.call(node, dict(zip(sources, own, strict=True)))
        return found[0] if isinstance(found, tuple) else found

    return vjp(function, *(values[source] for source in sources))[1](pull)


def obstacle(node: Node) -> str:
    """Return why a derivative cannot pass an operation."""
    if node.target is _OPS.native_batch_norm.default:
        return "batch norm in train mode mixes positions: use mode eval"
    return f"the derivative of {str(node.target).split('.')[1]} depends on values that the gradient does not reveal"
