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
from medpfl.attacks.deep.kernel_systems import LAYERS, by_channel, geometry_of, is_plain, kernels, places_of
from medpfl.attacks.deep.normalized_convolution import NormalizedConvolution, normalized_layer
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
    route = _route(graph, pool)
    if route is None:
        return None
    name = graph.parameter(route.convolution, LAYERS[route.convolution.target].weight)
    if name is None or name not in gradients:
        return None
    node, (source,) = route.convolution, graph.sources(route.convolution)
    layer = normalized_layer(graph, route.norm, gradients) if route.norm is not None and route.trains else None
    if route.trains and layer is None:
        return None
    flat = gradients[name].new_zeros(graph.shapes[node])
    scale, shift = _scale_and_shift(graph, route, layer, flat)
    through = vjp(lambda values: graph.call(pool, {route.rectifier: values}), flat)[1]
    most = 1.0 if source is graph.image else inf
    found = PooledConvolution(
        kernel=graph.fixed[node.args[1]],  # type: ignore[index]
        geometry=geometry_of(node),
        shape=graph.shapes[source],
        outputs=graph.shapes[node],
        where=places_of(graph, node),
        sent=kernels(gradients[name]),
        scale=scale,
        shift=shift,
        pool=lambda values: graph.call(pool, {route.rectifier: values}),
        spread=lambda pull: through(pull)[0],
        least=0.0 if most == 1.0 or _is_positive(graph, source) else -inf,
        most=most,
        summed=_summed(graph, route, scale, gradients),
        normal=layer,
        start=None if layer is None else by_channel(_made_up(graph, source)),
    )
    return PooledPath(source, node, route.rectifier, found)


class _Route(NamedTuple):
    """The nodes between a convolution and an average pooling.

    Attributes:
        convolution: the convolution.
        before: the node whose values enter the ReLU.
        norm: the batch norm right before the ReLU; ``None`` without one.
        rectifier: the ReLU.
    """

    convolution: Node
    before: Node
    norm: Node | None
    rectifier: Node

    @property
    def trains(self) -> bool:
        """True if the batch norm is in train mode."""
        return self.norm is not None and bool(self.norm.args[5])


def _route(graph: Graph, pool: Node) -> _Route | None:
    """Return the way back from an average pooling whose windows do not overlap to a plain convolution, if there is one.

    Between them are a ReLU and operations that scale and shift channels, and nothing else uses their values.
    """
    (rectifier,) = graph.sources(pool)
    if pool.target is not _OPS.avg_pool2d.default or rectifier.target not in RECTIFIERS or len(rectifier.users) > 1:
        return None
    (before,) = graph.sources(rectifier)
    last = before.args[0] if before.target is operator.getitem else before
    assert isinstance(last, Node)
    norm = last if last.target is _OPS.native_batch_norm.default else None
    node = graph.sources(norm)[0] if norm is not None and norm.args[5] else before
    while is_scaled(graph, node) and len(node.users) == 1:
        (node,) = graph.sources(node)
    if node.target is not _OPS.convolution.default or not is_plain(graph, node) or len(node.users) > 1:
        return None
    edges, window = graph.shapes[pool][2:], list(pool.args[1])  # type: ignore[arg-type]
    if [a * b for a, b in zip(edges, window, strict=False)] != list(graph.shapes[node][2:]):
        return None
    return _Route(node, before, norm, rectifier)


def _scale_and_shift(
    graph: Graph, route: _Route, layer: NormalizedConvolution | None, flat: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what scales and shifts (O,) a convolution's outputs, or the normalized ones, before the ReLU.

    Args:
        graph, route, layer: the graph, the route, and its batch norm in train mode.
        flat: zeros in the shape of the convolution's outputs.
    """
    if layer is not None:
        assert route.norm is not None
        return layer.gamma, graph.fixed[route.norm.args[2]]  # type: ignore[index]
    node, bias = route.convolution, route.convolution.args[2]
    low, high = (graph.after({node: flat + one})[route.before][0, :, 0, 0] for one in (0, 1))
    scale = high - low
    return scale, low + scale * (graph.fixed[bias] if isinstance(bias, Node) else 0.0)


def _summed(graph: Graph, route: _Route, scale: Tensor, gradients: Tensors) -> Tensor | None:
    """Return the sum (O,) of the derivative by a ReLU's inputs over all positions; ``None`` if no bias shows it.

    It is the gradient of the batch norm's bias right before the ReLU, or, up to the scale between, that of the
    convolution's.
    """
    if route.norm is not None:
        return gradients.get(graph.parameter(route.norm, 2) or "")
    convolution = route.convolution
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
