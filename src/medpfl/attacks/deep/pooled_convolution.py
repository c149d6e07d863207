"""The inputs of a convolution before a ReLU and average pooling, whose results are known.

The convolution's gradient is linear in its inputs once the derivative by its outputs is known. The derivative by the
pooled values is known, but each of them belongs to several outputs, and only those that the ReLU passed have it. So the
unknowns are the inputs and the ReLU's states. The pooled values are equations too: they are linear in the inputs, given
the states. Inputs and states are found in turns: the inputs that fit best, and the states that follow from them. A step
of half its length keeps the turns from circling. In the end, all equations fit exactly, or the inputs are not read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp
from torch.fx import Node
from torch.nn import functional
from torch.nn.grad import conv2d_input

from medpfl.attacks.deep.graph import RECTIFIERS, Graph
from medpfl.attacks.deep.kernel_systems import (
    LAYERS,
    flattened,
    geometry_of,
    is_plain,
    kernels,
    places_of,
    system_of,
    unflattened,
)
from medpfl.attacks.deep.passing import is_scaled
from medpfl.core.types import Tensors

__all__ = ["SPARE_STATES", "PooledConvolution", "PooledInputs", "PooledPath", "pooled_path"]

_OPS = torch.ops.aten

_TURNS, _STILL = 80, 2
"""Maximum number of turns, and the number of turns without a change of states after which they have settled."""

SPARE_STATES = 2.0
"""Smallest ratio of equations to unknowns of one channel at which the states are sought. With 1.1, none were found."""

_STEP = 0.5
"""Share of each turn's outputs in those that decide the states."""

_ZERO = 1e-6
"""Share of the largest pooled value below which a pooled value is zero."""

_FIRST_ERROR, _FIRST_POOLED = 0.3, 0.05
"""Variances of the gradient's and the pooled values' equations in the first turn, relative to their mean square."""

_ROBUST, _ROUNDED = 0.01, 1e-13
"""Least variance of an output channel's equations, relative to the median channel's, and to the mean square of all."""

_LEVEL = 0.02
"""Weight for an input's size beside that for its differences to its neighbors."""

_STEPS, _ACCURATE = 60, 1e-10
"""Steps of conjugate gradients in one turn, and relative residual at which they end."""


class PooledInputs(NamedTuple):
    """Inputs and states.

    Attributes:
        value: (C, D) inputs.
        states: (O, L) which outputs the ReLU passed.
        residual: relative residual of the gradient's equations.
        turns: number of turns.
    """

    value: Tensor
    states: Tensor
    residual: float
    turns: int


@dataclass(frozen=True, eq=False)
class PooledConvolution:
    """A convolution, a scale and a shift, a ReLU and average pooling. Positions run over all images in turn.

    Attributes:
        kernel: (O, C, ...) weight.
        geometry: ``stride``, ``padding`` and ``dilation`` of the convolution.
        shape: (N, C, H, W) of the inputs.
        outputs: (N, O, H, W) of the outputs.
        where: (K, L) input position of each kernel weight at each output position; D for padding.
        sent: (O, C, K) gradient of the weight.
        scale, shift: (O,) applied to the convolution's outputs.
        pool: average pooling, from (N, O, H, W).
        spread: its transpose.
        least, most: range of the inputs.
    """

    kernel: Tensor
    geometry: dict[str, Any]
    shape: torch.Size
    outputs: torch.Size
    where: Tensor
    sent: Tensor
    scale: Tensor
    shift: Tensor
    pool: Callable[[Tensor], Tensor]
    spread: Callable[[Tensor], Tensor]
    least: float
    most: float

    @property
    def count(self) -> int:
        """D, the number of input positions of all images."""
        return self.shape[0] * self.shape[2] * self.shape[3]

    def forward(self, x: Tensor) -> Tensor:
        """Return the ReLU's inputs (O, L) for inputs (C, D)."""
        return self._linear(x) + self.shift[:, None]

    def _linear(self, x: Tensor) -> Tensor:
        made = functional.conv2d(unflattened(x, self.shape), self.kernel, None, **self.geometry)
        return flattened(made) * self.scale[:, None]

    def _transposed(self, y: Tensor) -> Tensor:
        """Return the transpose of the linear part of `forward`, applied to (O, L)."""
        own = unflattened(y * self.scale[:, None], self.outputs)
        return flattened(conv2d_input(self.shape, self.kernel, own, **self.geometry))  # type: ignore[arg-type]

    def _pooled(self, y: Tensor) -> Tensor:
        return flattened(self.pool(unflattened(y, self.outputs)))

    def _spread(self, pooled: Tensor, like: torch.Size) -> Tensor:
        return flattened(self.spread(unflattened(pooled, like)))

    def solve(self, pooled: Tensor, pull: Tensor) -> PooledInputs | None:
        """Return the inputs; ``None`` if the turns do not settle.

        Args:
            pooled: (N, O, h, w) values behind the pooling.
            pull: (N, O, h, w) the loss's derivative with respect to them.
        """
        like, values = pooled.shape, flattened(pooled)
        opened = self._spread(flattened(pull), like) * self.scale[:, None]
        alive = values > _ZERO * values.max()
        possible = self._spread(alive.to(values), like) > 0
        shares = self._spread(torch.ones_like(values), like)  # of an output in its pooled value
        turns = _Turns(self, values, opened, shares, like)
        states, z, still = possible, None, 0
        for k in range(_TURNS):
            x = turns.inputs(states)
            new = self.forward(x)
            z = new if z is None else z + _STEP * (new - z)
            before, states = states, self._states(z, possible, alive, like)
            still = still + 1 if torch.equal(before, states) else 0
            if still >= _STILL and torch.equal(states, self._states(new, possible, alive, like)):
                x = turns.inputs(states, exact=True)
                return PooledInputs(x, states, turns.residual, k + 1)
        return None

    def _states(self, z: Tensor, possible: Tensor, alive: Tensor, like: torch.Size) -> Tensor:
        """Return the states that follow from the ReLU's inputs; each pooled value above zero has one that is on."""
        on = (z > 0) & possible
        none = alive & (self._pooled(on.to(z)) == 0)
        if not none.any():
            return on
        lack = self._spread(none.to(z), like) > 0
        sizes = tuple(round(a / b) for a, b in zip(self.outputs[2:], like[2:], strict=True))
        high = functional.max_pool2d(unflattened(z, self.outputs), sizes, ceil_mode=True)
        wide = functional.interpolate(high, size=self.outputs[2:], mode="nearest")
        return on | (lack & (z >= flattened(wide)))


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
    (node,) = graph.sources(rectifier)
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
    flat = gradients[name].new_zeros(outputs)
    (before,) = graph.sources(rectifier)
    low, high = (graph.after({node: flat + one})[before][0, :, 0, 0] for one in (0, 1))
    bias = graph.fixed[node.args[2]] if isinstance(node.args[2], Node) else 0.0
    through = vjp(lambda values: graph.call(pool, {rectifier: values}), flat)[1]
    kernel = graph.fixed[node.args[1]]  # type: ignore[index]
    most = 1.0 if source is graph.image else inf
    layer = PooledConvolution(
        kernel,
        geometry_of(node),
        graph.shapes[source],
        outputs,
        places_of(graph, node),
        kernels(gradients[name]),
        high - low,
        low + (high - low) * bias,
        lambda values: graph.call(pool, {rectifier: values}),
        lambda pull: through(pull)[0],
        0.0 if most == 1.0 or _is_positive(graph, source) else -inf,
        most,
    )
    return PooledPath(source, node, rectifier, layer)


def _is_positive(graph: Graph, node: Node) -> bool:
    """Return True if a node's values are a ReLU's outputs, or averages of them."""
    while node.target is _OPS.avg_pool2d.default:
        (node,) = graph.sources(node)
    return graph.rectifier(node) is not None


class _Turns:
    """The weighted least squares for the inputs, and what one turn hands to the next."""

    def __init__(
        self, layer: PooledConvolution, values: Tensor, opened: Tensor, shares: Tensor, like: torch.Size
    ) -> None:
        self.layer, self.values, self.opened, self.like = layer, values, opened, like
        self.sent = layer.sent.transpose(1, 2)  # (O, K, C)
        size = self.sent.square().mean((1, 2))
        self.floor = _ROUNDED * float(size.mean())
        self.variance = (_FIRST_ERROR * size).clamp(min=self.floor)
        self.pooled_variance = torch.full_like(values, _FIRST_POOLED * float(values.square().mean()))
        self.power = float(values.square().mean())
        self.roughness = _roughness(layer.shape).to(values)
        self.x = values.new_zeros(layer.shape[1], layer.count)
        self.residual = torch.inf

    def inputs(self, states: Tensor, exact: bool = False) -> Tensor:
        """Return the inputs (C, D) that fit best, and weigh the equations by how well they fit."""
        layer, on = self.layer, states.to(self.values)
        system = system_of(on * self.opened, layer.where, layer.count)
        normal = torch.einsum("o,okd,oke->de", 1 / self.variance, system, system) + self.roughness / self.power
        right = torch.einsum("o,okd,okc->cd", 1 / self.variance, system, self.sent)
        rest = self.values - layer._pooled(on * layer.shift[:, None])
        right = right + layer._transposed(on * layer._spread(rest / self.pooled_variance, self.like))

        def apply(x: Tensor) -> Tensor:
            pooled = layer._pooled(on * layer._linear(x)) / self.pooled_variance
            return x @ normal + layer._transposed(on * layer._spread(pooled, self.like))

        x = _conjugate_gradients(apply, torch.linalg.cholesky(normal), right, self.x, 10 * _STEPS if exact else _STEPS)
        self.x = x if exact else x.clamp(layer.least, layer.most)
        self._weigh(system, on)
        return self.x

    def _weigh(self, system: Tensor, on: Tensor) -> None:
        """Set the variance of each equation from what is left of it."""
        rest = system @ self.x.T - self.sent
        self.residual = float(rest.norm() / self.sent.norm())
        square = rest.square().mean((1, 2))
        self.variance = (square + _ROBUST * square.median()).clamp(min=self.floor)
        gap = (self.layer._pooled(on * self.layer.forward(self.x)) - self.values).square()
        self.pooled_variance = ((gap + gap.mean()) / 2).clamp(min=1e-12 * float(self.values.square().mean()))
        self.power = max(float((self.x @ self.roughness * self.x).mean()), 1e-12 * float(self.values.square().mean()))


def _roughness(shape: torch.Size) -> Tensor:
    """Return the matrix (D, D) of the squared differences between neighbors in an image, and of a weight for size."""
    images, _, height, width = shape
    places = torch.arange(images * height * width).view(images, height, width)
    across, down = (places[..., 1:], places[..., :-1]), (places[:, 1:], places[:, :-1])
    first, second = (torch.cat([a.flatten(), b.flatten()]) for a, b in zip(across, down, strict=True))
    edges = torch.zeros(len(first), places.numel(), dtype=torch.float64)
    edges[torch.arange(len(first)), first], edges[torch.arange(len(first)), second] = 1.0, -1.0
    return edges.T @ edges + _LEVEL * torch.eye(places.numel(), dtype=torch.float64)


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor], factor: Tensor, right: Tensor, x: Tensor, steps: int
) -> Tensor:
    """Return the solution (C, D) of a symmetric system, with a preconditioner's Cholesky factor (D, D)."""
    rest = right - apply(x)
    near = torch.cholesky_solve(rest.T, factor).T
    along, size = near, float((rest * near).sum())
    goal = _ACCURATE**2 * float((right * torch.cholesky_solve(right.T, factor).T).sum())
    for _ in range(steps):
        if not size > goal:
            break
        change = apply(along)
        length = size / float((along * change).sum())
        x, rest = x + length * along, rest - length * change
        near = torch.cholesky_solve(rest.T, factor).T
        before, size = size, float((rest * near).sum())
        along = near + size / before * along
    return x
