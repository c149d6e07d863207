"""A convolution's inputs from its kernels' gradient, by one small system shared by all channels.

For output derivatives p at L positions, the kernels' gradient is ``G[o, c, k] = sum_l p[o, l] x[c, place(k, l)]``. It
is linear in the inputs, separately for each channel, with the same matrix. In ReLU networks, most rows of p are
uncertain at a position or two. There are many times more equations than unknowns, so rows that do not fit can be
detected.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from medpfl.attacks.deep.graph import Graph

__all__ = [
    "LARGEST",
    "LAYERS",
    "SPARE_EQUATIONS",
    "Inputs",
    "active",
    "by_channel",
    "by_image",
    "geometry_of",
    "inputs",
    "is_plain",
    "kernel_size",
    "kernels",
    "places",
    "places_of",
    "pulls",
    "system_of",
]

SPARE_EQUATIONS = 1.1
"""Smallest ratio of equations to unknowns at which a convolution before batch norm in train mode is solved."""

_OPS = torch.ops.aten


class Arguments(NamedTuple):
    """The places of a layer's weight and bias among its node's arguments."""

    weight: int
    bias: int


LAYERS: dict[Any, Arguments] = {_OPS.convolution.default: Arguments(1, 2), _OPS.addmm.default: Arguments(2, 0)}
"""Layers whose inputs a gradient can show. A linear layer is a convolution with one kernel weight, over a single
position of each image."""

LARGEST = 2**26
"""Number of matrix elements above which a layer's equations are not solved: 512 MB."""

_SINGULAR = 1e8
"""Variance inflation of an input by the others above which the system does not determine it."""

_ODD = 30.0
"""A row does not fit if its residual is this many times the median and float32 is the only source of error."""

_ROUNDED, _SPOILED = 1e-6, 3.0
"""Relative residual that float32 alone can cause. A larger median may come from a solution spoiled by an uncertain
row. Then rows beyond `_SPOILED` times the median do not fit."""

_TRIMS, _SPARE = 16, 1.5
"""Maximum number of times rows are left out, and minimum ratio of equations to unknowns."""


class Inputs(NamedTuple):
    """Inputs with C channels at D positions, as a kernel's gradient determines them.

    Attributes:
        value: (C, D) inputs.
        error: (C, D) their standard deviation, from the residuals.
        odd: (O,) output channels whose rows do not fit.
        residual: median relative residual of the other rows.
    """

    value: Tensor
    error: Tensor
    odd: Tensor
    residual: float


def places(size: tuple[int, ...], kernel: tuple[int, ...], geometry: dict[str, Any], images: int = 1) -> Tensor:
    """Return which of the D inputs each kernel weight meets at each output position (K, L); D for padding.

    Args:
        size: (H, W) of the inputs.
        kernel: (height, width).
        geometry: ``stride``, ``padding`` and ``dilation`` for `torch.nn.functional.unfold`.
        images: number of images, whose positions follow one another.
    """
    count = images * size[0] * size[1]
    numbers = torch.arange(1, count + 1, dtype=torch.float64).view(images, 1, *size)
    seen = functional.unfold(numbers, kernel, **geometry).transpose(0, 1).flatten(1).long()
    return torch.where(seen == 0, count, seen - 1)


def kernel_size(graph: Graph, layer: Node) -> int:
    """Return K, the number of weights in a kernel of a convolution or linear layer."""
    return prod(graph.fixed[layer.args[LAYERS[layer.target].weight]].shape[2:])  # type: ignore[index]


def places_of(graph: Graph, layer: Node, images: int = 0) -> Tensor:
    """Return `places` for a convolution or linear layer, for all of the graph's images or a given number of them."""
    count, _, *size = graph.shapes[graph.sources(layer)[0]]
    images = images or count
    if layer.target is _OPS.addmm.default:
        return torch.arange(images)[None]
    kernel = graph.fixed[layer.args[1]]  # type: ignore[index]
    return places(tuple(size), tuple(kernel.shape[2:]), geometry_of(layer), images)


def is_plain(graph: Graph, layer: Node) -> bool:
    """Return True if a layer of `LAYERS` is linear, or a convolution of images that is not grouped or transposed."""
    size = len(graph.shapes[graph.sources(layer)[0]])
    if layer.target is _OPS.addmm.default:
        return size == 2
    return bool(size == 4 and not layer.args[6] and layer.args[8] == 1)


def kernels(gradient: Tensor) -> Tensor:
    """Return a weight's gradient (O, C, ...) as (O, C, K)."""
    return gradient.reshape(*gradient.shape[:2], -1)


def system_of(pull: Tensor, where: Tensor, count: int) -> Tensor:
    """Return the matrix (O, K, D) that maps one channel's inputs to its gradient; arguments as in `inputs`."""
    channels, weights = len(pull), len(where)
    system = pull.new_zeros(channels, weights, count + 1)
    system.scatter_add_(2, where.expand(channels, -1, -1), pull[:, None].expand(-1, weights, -1))
    return system[:, :, :count]


def inputs(pull: Tensor, gradient: Tensor, where: Tensor, count: int) -> Inputs | None:
    """Return the inputs by least squares over the rows that fit; ``None`` if the system does not determine them all.

    Args:
        pull: (O, L) the loss's derivative with respect to the outputs.
        gradient: (O, C, K) the kernels' gradient.
        where: result from `places`.
        count: D.
    """
    weights, system = len(where), system_of(pull, where, count)
    sent = gradient.transpose(1, 2)  # (O, K, C)
    size = sent.flatten(1).norm(dim=1)
    if not size.any():
        return None
    keep, solved = torch.ones_like(size, dtype=torch.bool), _solve(system, sent)
    for left in reversed(range(_TRIMS)):
        if solved is None:
            return None
        rest = sent - system @ solved[0]
        share, median, limit = _shares(rest.flatten(1).norm(dim=1), size, keep)
        odd, worst = share > limit, share[keep].max()
        fewer = keep & (share <= worst / 3)
        again = _solve(system[fewer], sent[fewer]) if odd[keep].any() else None
        if again is None or not left or int(fewer.sum()) * weights < _SPARE * count:
            freedoms = max(int(keep.sum()) * weights - count, 1)
            deviation = (rest[keep].square().sum((0, 1)) / freedoms).sqrt()
            return Inputs(solved[0].T, deviation[:, None] * solved[1], odd, median)
        keep, solved = fewer, again
    return None


def _shares(rest: Tensor, size: Tensor, keep: Tensor) -> tuple[Tensor, float, float]:
    """Return residuals (O,) relative to row size, their median among the kept rows, and the limit for rows that fit.

    Rounding is proportional to a row. Noise is the same for all rows, so small rows seem not to fit.
    """
    share = torch.where(size > 0, rest / size, 0.0)
    median = float(share[keep].median())
    if median < _ROUNDED:
        return share, median, max(_ODD * median, torch.finfo(torch.float64).eps)
    share = rest / (size + size[size > 0].median())
    median = float(share[keep].median())
    return share, median, _SPOILED * median


def _solve(system: Tensor, sent: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return inputs (D, C), and the square roots (D,) of the inverse normal matrix's diagonal."""
    matrix, right = system.flatten(0, 1), sent.flatten(0, 1)
    normal = matrix.T @ matrix
    factor, failed = torch.linalg.cholesky_ex(normal)
    if failed or not len(matrix):
        return None
    inverse = torch.cholesky_inverse(factor).diagonal()
    if not (inverse * normal.diagonal()).max() < _SINGULAR:  # also where it is NaN
        return None
    return torch.cholesky_solve(matrix.T @ right, factor), inverse.sqrt()


def pulls(value: Tensor, gradient: Tensor, where: Tensor) -> Tensor | None:
    """Return derivatives (R, L) for some output channels, from the inputs (C, D) and gradients (R, C, K)."""
    padded = torch.cat([value, torch.zeros_like(value[:, :1])], 1)
    seen = padded[:, where].flatten(0, 1).T  # (L, C * K)
    factor, failed = torch.linalg.cholesky_ex(seen @ seen.T)
    return None if failed else torch.cholesky_solve(seen @ gradient.flatten(1).T, factor).T


def active(pull: Tensor, gradient: Tensor, where: Tensor, count: int) -> Tensor | None:
    """Return which outputs (O, L) the next ReLU passed; ``None`` if that cannot be determined.

    At the border of a small map, some kernel weights meet one position's inputs, and padding at all others. Their
    gradient is zero unless the ReLU passed that position.

    Args:
        pull: (O, L) derivative with respect to the outputs if all had been passed.
        gradient, where, count: as in `inputs`.
    """
    real = where < count
    alone = real & (real.sum(1, keepdim=True) == 1)
    if not alone.any(0).all():
        return None
    told = (gradient.square().sum(1) @ alone.to(gradient)).sqrt() / pull.abs().clamp(min=1e-300)  # (O, L)
    told = torch.where(pull == 0, 0.0, told)
    return told > told.amax(0) / 2


def by_channel(values: Tensor) -> Tensor:
    """Return values (N, C, ...) as (C, D), with the positions of all images in turn."""
    return values.transpose(0, 1).flatten(1)


def by_image(values: Tensor, shape: torch.Size) -> Tensor:
    """Return values (C, D) in a shape (N, C, ...): the inverse of `by_channel`."""
    return values.view(shape[1], shape[0], *shape[2:]).transpose(0, 1)


def geometry_of(node: Node) -> dict[str, Any]:
    """Return a convolution's stride, padding and dilation."""
    return dict(zip(("stride", "padding", "dilation"), node.args[3:6], strict=True))
