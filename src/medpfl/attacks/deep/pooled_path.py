"""The way from an average pooling back to the convolution before it, and what gradients show of the ReLU between."""

from __future__ import annotations

import operator
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vjp
from torch.fx import Node

from medpfl.attacks.deep.graph import RECTIFIERS, Graph
from medpfl.attacks.deep.kernel_systems import LAYERS, flattened, geometry_of, is_plain, kernels, places_of
from medpfl.attacks.deep.normalized_convolution import normalized_layer
from medpfl.attacks.deep.passing import is_scaled
from medpfl.attacks.deep.pooled_convolution import PooledConvolution
from medpfl.attacks.inversion.gaussian_prior import expected_images
from medpfl.core.types import Tensors

__all__ = ["PooledPath", "pooled_path"]

_OPS = torch.ops.aten


class PooledPath(NamedTuple):
    """The nodes from a convolution's inputs to the average pooling of its outputs."""

    source: Node
    convolution: Node
    rectifier: Node
    layer: PooledConvolution


def pooled_path(graph: Graph, pool: Node, gradients: Tensors) -> PooledPath | None:
    """Return the path to an average pooling whose windows do not overlap; ``None`` if it is of another kind."""
    (rectifier,) = graph.sources(pool)
    if pool.target is not _OPS.avg_pool2d.default or rectifier.target not in RECTIFIERS or len(rectifier.users) > 1:
        return None
    (before,) = graph.sources(rectifier)
    normal = before.args[0] if before.target is operator.getitem else before
    assert isinstance(normal, Node)
    trained = normal.target is _OPS.native_batch_norm.default and bool(normal.args[5])
    node = graph.sources(normal)[0] if trained else before
    while is_scaled(graph, node) and len(node.users) == 1:
        (node,) = graph.sources(node)
    if node.target is not _OPS.convolution.default or not is_plain(graph, node) or len(node.users) > 1:
        return None
    name, (source,) = graph.parameter(node, LAYERS[node.target].weight), graph.sources(node)
    outputs, sizes = graph.shapes[node], graph.shapes[pool]
    window = list(pool.args[1])  # type: ignore[arg-type]
    if (
        name is None
        or name not in gradients
        or [a * b for a, b in zip(sizes[2:], window, strict=False)] != list(outputs[2:])
    ):
        return None
    layer = normalized_layer(graph, normal, gradients) if trained else None
    if trained and layer is None:
        return None
    flat = gradients[name].new_zeros(outputs)
    if layer is not None:
        scale, shift = layer.gamma, graph.fixed[normal.args[2]]  # type: ignore[index]
    else:
        low, high = (graph.after({node: flat + one})[before][0, :, 0, 0] for one in (0, 1))
        scale = high - low
        shift = low + scale * (graph.fixed[node.args[2]] if isinstance(node.args[2], Node) else 0.0)
    through = vjp(lambda values: graph.call(pool, {rectifier: values}), flat)[1]
    most = 1.0 if source is graph.image else inf
    found = PooledConvolution(
        graph.fixed[node.args[1]],  # type: ignore[index]
        geometry_of(node),
        graph.shapes[source],
        outputs,
        places_of(graph, node),
        kernels(gradients[name]),
        scale,
        shift,
        lambda values: graph.call(pool, {rectifier: values}),
        lambda pull: through(pull)[0],
        0.0 if most == 1.0 or _is_positive(graph, source) else -inf,
        most,
        _summed(graph, normal, node, scale, gradients),
        layer,
        None if layer is None else flattened(_made_up(graph, source)),
    )
    return PooledPath(source, node, rectifier, found)


def _summed(graph: Graph, normal: Node, convolution: Node, scale: Tensor, gradients: Tensors) -> Tensor | None:
    """Return the sum (O,) of the derivative by a ReLU's inputs over all positions; ``None`` if no bias shows it.

    It is the gradient of the batch norm's bias right before the ReLU, or, up to the scale between, that of the
    convolution's.
    """
    if normal.target is _OPS.native_batch_norm.default:
        return gradients.get(graph.parameter(normal, 2) or "")
    told = gradients.get(graph.parameter(convolution, LAYERS[convolution.target].bias) or "")
    return told / scale if told is not None and bool((scale != 0).all()) else None


def _made_up(graph: Graph, node: Node) -> Tensor:
    """Return a node's values for made-up images."""
    count, *shape = graph.shapes[graph.image]
    drawn = expected_images(tuple(shape), torch.device("cpu")).draw(count, torch.Generator().manual_seed(0))
    return graph.value(drawn.clamp(0, 1).view(count, *shape), node)


def _is_positive(graph: Graph, node: Node) -> bool:
    """Return True if a node's values are a ReLU's outputs, or averages of them."""
    while node.target is _OPS.avg_pool2d.default:
        (node,) = graph.sources(node)
    return graph.rectifier(node) is not None
