"""Sizes that batch norm in train mode hides: of its inputs, and the contrast of a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import Node

from medpfl.attacks.deep.graph import Graph
from medpfl.core.types import Tensors

__all__ = ["common_factor", "size_factor", "stated_variances", "with_contrast"]

_OPS = torch.ops.aten

_TAILS = (0.002, 0.998)
"""Quantiles of the pixels that reach 0 or 1 where nothing tells the contrast."""


def stated_variances(graph: Graph, model: nn.Module, before: Tensors, after: Tensors) -> dict[Node, Tensor]:
    """Return the variances (C,) of the inputs of each batch norm in train mode, by node, as far as buffers state them.

    They are unbiased, and over the positions of all images of the last batch. A running variance is
    ``(1 - momentum) before + momentum variance`` after a step.

    Args:
        graph: the model's graph.
        model: the model, for the batch norms' momentum.
        before, after: the buffers before and after the update; ``after`` is empty if they are not sent.
    """
    found = {}
    for node in graph.nodes:
        if node.target is not _OPS.native_batch_norm.default or not node.args[5]:
            continue
        weight = node.args[1]
        layer = graph.parameters.get(weight, "").rpartition(".")[0] if isinstance(weight, Node) else ""
        key = f"{layer}.running_var"
        momentum = getattr(model.get_submodule(layer), "momentum", None) if layer else None
        if momentum and key in before and key in after:
            told = after[key].double().cpu() - (1 - momentum) * before[key].double().cpu()
            found[node] = (told / momentum).clamp(min=0)
    return found


def size_factor(told: Tensor, made: Tensor) -> float | None:
    """Return the factor for values with variances (C,) `made`, so that they have those `told`; ``None`` if unknown."""
    ratio = (told / made.clamp(min=1e-30)).median().sqrt()
    return float(ratio) if ratio > 0 and ratio.isfinite() else None


def with_contrast(graph: Graph, images: Tensor, variances: Mapping[Node, Tensor]) -> Tensor:
    """Return images (N, C, H, W) in the batch's contrast; unchanged if the first layer does not hide it.

    Behind the first convolution, batch norm in train mode removes any factor of the convolution's inputs. With the
    variance of the batch norm's inputs, the factor is known. Otherwise, the factor is the largest
    one for which the pixels, but for two in a thousand on either side, stay in [0, 1].

    Args:
        graph: the model's graph.
        images: in any contrast.
        variances: from `stated_variances`.
    """
    convolution = next((node for node in graph.nodes if node.target is _OPS.convolution.default), None)
    normal = None if convolution is None else graph.batch_norm(convolution)
    if convolution is None or normal is None or not normal.args[5]:
        return images
    center = _center(graph, convolution)
    if center is None:
        return images
    told, factor = variances.get(normal), None
    if told is not None:
        factor = size_factor(told, graph.value(images.double().cpu(), convolution).var((0, 2, 3)))
    if factor is None:
        low, high = torch.quantile((images - center).transpose(0, 1).flatten(1), torch.tensor(_TAILS).to(images), dim=1)
        rooms = torch.stack([center.flatten(), 1 - center.flatten()])  # none on a side where the center is the edge
        reached = torch.stack([-low, high]).clamp(min=1e-3)
        factor = float(torch.where(rooms > 0, rooms / reached, torch.inf).min())
    return center + factor * (images - center)


def _center(graph: Graph, convolution: Node) -> Tensor | None:
    """Return the pixel values (C, 1, 1) at which the convolution's inputs are zero; ``None`` if a channel has none."""
    (source,) = graph.sources(convolution)
    shape = graph.shapes[graph.image]
    like = next(t for t in graph.fixed.values() if isinstance(t, Tensor) and t.is_floating_point())
    low, high = (graph.value(like.new_full(shape, number), source).mean((0, 2, 3)) for number in (0.0, 1.0))
    if len(low) != shape[1] or not (low != high).all():
        return None
    center = (low / (low - high)).float().view(-1, 1, 1)
    return center if ((center >= 0) & (center <= 1)).all() else None


def common_factor(left: Tensor, right: Tensor) -> float:
    """Return the factor f that minimizes the sum of |left - f right|: a weighted median of the ratios."""
    weight = right.abs()
    ratio, order = (left / torch.where(right == 0, 1.0, right)).sort()
    half = weight[order].cumsum(0)
    return float(ratio[(half < half[-1] / 2).sum().clamp(max=len(ratio) - 1)])
