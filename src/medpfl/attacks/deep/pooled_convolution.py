"""The inputs of a convolution before a ReLU and average pooling, whose results are known.

The convolution's gradient is linear in its inputs once the derivative by its outputs is known. The derivative by the
pooled values is known, but each of them belongs to several outputs, and only those that the ReLU passed have it. So the
unknowns are the inputs and the ReLU's states. The pooled values are equations too: they are linear in the inputs, given
the states. Inputs and states are found in turns: the inputs that fit best, and the states that follow from them. A step
of half its length keeps the turns from circling. In the end, all equations fit exactly, or the inputs are not read.

The gradient of a bias before the ReLU is the sum of the derivative over the outputs that are on. Where the states of a
channel do not give this sum, and those of one or two outputs near zero do if exchanged, they are exchanged.

Batch norm in train mode makes the derivative, and the values before the ReLU, depend on the inputs' own statistics.
Each turn takes them from the inputs of the turn before. Their size stays hidden, so it is kept constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

from medpfl.attacks.deep.kernel_systems import by_channel, by_image, system_of
from medpfl.attacks.deep.normalized_convolution import NormalizedConvolution

__all__ = ["SPARE_STATES", "PooledConvolution", "PooledInputs"]

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

_SETTLING, _SETTLED = 25, 1e-8
"""Behind batch norm in train mode: maximum number of solutions for the final states, and the inputs' relative change at
which they end."""

_NEAR, _SAME_SUM, _TRUSTED = 16, 1e-5, 10.0
"""Number of outputs nearest to zero of each channel whose states may be exchanged, relative error of the states' sum up
to which it equals the bias's gradient, and the ratio by which such a channel's equations are trusted more."""

_STEPS, _ACCURATE = 60, 1e-10
"""Steps of conjugate gradients in one turn, and relative residual at which they end."""


class PooledInputs(NamedTuple):
    """Inputs and states.

    Attributes:
        value: (C, D) inputs.
        states: (O, L) which outputs the ReLU passed.
        residual: relative residual of the gradient's equations.
    """

    value: Tensor
    states: Tensor
    residual: float


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
        scale, shift: (O,) applied to the convolution's outputs, or to the normalized ones.
        pool: average pooling, from (N, O, H, W).
        spread: its transpose.
        least, most: range of the inputs.
        summed: (O,) sum of the derivative by the ReLU's inputs over all positions, as the gradient of a bias shows it;
            ``None`` without such a bias.
        normal: batch norm in train mode behind the convolution; ``None`` without one.
        start: (C, D) inputs for the batch norm's first statistics, and in size.
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
    summed: Tensor | None = None
    normal: NormalizedConvolution | None = None
    start: Tensor | None = None

    @property
    def count(self) -> int:
        """D, the number of input positions of all images."""
        return self.shape[0] * self.shape[2] * self.shape[3]

    def affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors and summands (O,) between the convolution's outputs and the ReLU, for inputs (C, D)."""
        if self.normal is None:
            return self.scale, self.shift
        variance, mean = torch.var_mean(self.normal.forward(x), 1, unbiased=False)
        gain = self.scale / (variance + self.normal.eps).sqrt()
        return gain, self.shift - gain * mean

    def derivative(self, dy: Tensor, x: Tensor) -> Tensor:
        """Return the derivative by the convolution's outputs (O, L), from that by the ReLU's inputs."""
        return dy * self.scale[:, None] if self.normal is None else self.normal.derivative(dy, x)

    def convolved(self, x: Tensor) -> Tensor:
        """Return the convolution's outputs (O, L) for inputs (C, D), without its bias."""
        return by_channel(functional.conv2d(by_image(x, self.shape), self.kernel, None, **self.geometry))

    def transposed(self, y: Tensor) -> Tensor:
        """Return the transpose of `convolved`, applied to (O, L)."""
        own = by_image(y, self.outputs)
        return by_channel(conv2d_input(self.shape, self.kernel, own, **self.geometry))  # type: ignore[arg-type]

    def pooled(self, y: Tensor) -> Tensor:
        """Return the pooled values of (O, L)."""
        return by_channel(self.pool(by_image(y, self.outputs)))

    def spreaded(self, pooled: Tensor, like: torch.Size) -> Tensor:
        """Return the transpose of `pooled`, applied to values whose shape was `like` before `by_channel`."""
        return by_channel(self.spread(by_image(pooled, like)))

    def solve(self, pooled: Tensor, pull: Tensor) -> PooledInputs | None:
        """Return the inputs; ``None`` if the turns do not settle.

        Args:
            pooled: (N, O, h, w) values behind the pooling.
            pull: (N, O, h, w) the loss's derivative with respect to them.
        """
        turns = _Turns(self, by_channel(pooled), by_channel(pull), pooled.shape)
        states, z, still = turns.possible, None, 0
        for _ in range(_TURNS):
            new = turns.solve(states)
            z = new if z is None else z + _STEP * (new - z)
            before, states = states, turns.states(z)
            still = still + 1 if torch.equal(before, states) else 0
            if still >= _STILL and torch.equal(states, turns.states(new)):
                x = turns.settled(states)
                return PooledInputs(x, states, turns.residual)
        return None


class _Turns:
    """The weighted least squares for the inputs, and what one turn hands to the next.

    Attributes:
        possible: (O, L) outputs that the ReLU may have passed: their pooled values are not zero.
        good: (O,) output channels whose states explain the bias's gradient.
        residual: relative residual of the gradient's equations.
    """

    def __init__(self, layer: PooledConvolution, values: Tensor, pull: Tensor, like: torch.Size) -> None:
        self.layer, self.values, self.like = layer, values, like
        self.opened = layer.spreaded(pull, like)
        self.alive = values > _ZERO * values.max()
        self.possible = layer.spreaded(self.alive.to(values), like) > 0
        self.sent = layer.sent.transpose(1, 2)  # (O, K, C)
        size = self.sent.square().mean((1, 2))
        self.floor = _ROUNDED * float(size.mean())
        self.variance = (_FIRST_ERROR * size).clamp(min=self.floor)
        self.pooled_variance = torch.full_like(values, _FIRST_POOLED * float(values.square().mean()))
        self.power = float(values.square().mean())
        self.roughness = _roughness(layer.shape).to(values)
        self.x = values.new_zeros(layer.shape[1], layer.count) if layer.start is None else layer.start
        self.size = self.x.norm()
        self.gain, self.offset = layer.affine(self.x)
        self.good = torch.zeros(len(self.sent), dtype=torch.bool)
        self.residual = torch.inf

    def solve(self, states: Tensor, exact: bool = False) -> Tensor:
        """Find the inputs that fit best, weigh the equations by how well they fit, and return the ReLU's inputs."""
        layer, on = self.layer, states.to(self.values)
        system = system_of(layer.derivative(on * self.opened, self.x), layer.where, layer.count)
        normal = torch.einsum("o,okd,oke->de", 1 / self.variance, system, system) + self.roughness / self.power
        right = torch.einsum("o,okd,okc->cd", 1 / self.variance, system, self.sent)
        rest = self.values - layer.pooled(on * self.offset[:, None])
        gain = on * self.gain[:, None]
        right = right + layer.transposed(gain * layer.spreaded(rest / self.pooled_variance, self.like))

        def apply(x: Tensor) -> Tensor:
            pooled = layer.pooled(gain * layer.convolved(x)) / self.pooled_variance
            return x @ normal + layer.transposed(gain * layer.spreaded(pooled, self.like))

        x = _conjugate_gradients(apply, torch.linalg.cholesky(normal), right, self.x, 10 * _STEPS if exact else _STEPS)
        x = x if exact else x.clamp(layer.least, layer.most)
        left = system @ x.T - self.sent
        self.residual = float(left.norm() / self.sent.norm())
        if layer.normal is not None:
            x = x * (self.size / x.norm())
        self.x, (self.gain, self.offset) = x, layer.affine(x)
        z = self.gain[:, None] * layer.convolved(x) + self.offset[:, None]
        self._weigh(left.square().mean((1, 2)), layer.pooled(on * z))
        return z

    def settled(self, states: Tensor) -> Tensor:
        """Return the inputs (C, D) for the right states."""
        for _ in range(_SETTLING if self.layer.normal is not None else 1):
            before = self.x
            self.solve(states, exact=True)
            if (self.x - before).norm() <= _SETTLED * before.norm():
                break
        return self.x

    def _weigh(self, square: Tensor, pooled: Tensor) -> None:
        """Set the variance of each equation from what is left of it.

        Args:
            square: (O,) mean squared error of the gradient's equations.
            pooled: (O, ...) the inputs' pooled values.
        """
        square = torch.where(self.good, square / _TRUSTED, square)
        self.variance = (square + _ROBUST * square.median()).clamp(min=self.floor)
        gap, least = (pooled - self.values).square(), 1e-12 * float(self.values.square().mean())
        self.pooled_variance = ((gap + gap.mean()) / 2).clamp(min=least)
        self.power = max(float((self.x @ self.roughness * self.x).mean()), least)

    def states(self, z: Tensor) -> Tensor:
        """Return the states that follow from the ReLU's inputs; each pooled value above zero has one that is on.

        Where they do not explain the bias's gradient, and those of one or two outputs near zero do if exchanged, these
        are exchanged.
        """
        on = (z > 0) & self.possible
        none = self.alive & (self.layer.pooled(on.to(z)) == 0)
        if none.any():
            lack = self.layer.spreaded(none.to(z), self.like) > 0
            sizes = tuple(round(a / b) for a, b in zip(self.layer.outputs[2:], self.like[2:], strict=True))
            high = functional.max_pool2d(by_image(z, self.layer.outputs), sizes, ceil_mode=True)
            wide = functional.interpolate(high, size=self.layer.outputs[2:], mode="nearest")
            on = on | (lack & (z >= by_channel(wide)))
        if self.layer.summed is not None:
            self.good = self._corrected(on, z)
        return on

    def _corrected(self, on: Tensor, z: Tensor) -> Tensor:
        """Correct states in place, and return the channels (O,) that explain the bias's gradient."""
        assert self.layer.summed is not None
        rest, limit = self.layer.summed - (on * self.opened).sum(1), _SAME_SUM * self.opened.abs().sum(1)
        good = rest.abs() < limit
        cost, near = torch.where(self.possible, z.abs(), torch.inf).topk(min(_NEAR, z.shape[1]), 1, largest=False)
        change = self.opened.gather(1, near) * (1 - 2 * on.gather(1, near).to(z))
        for k in (~good).nonzero()[:, 0].tolist():
            both = (change[k] + change[k][:, None]).fill_diagonal_(0.0) + change[k].diag()
            price = (cost[k] + cost[k][:, None]).fill_diagonal_(0.0) + cost[k].diag()
            price = torch.where((rest[k] - both).abs() < limit[k], price, torch.inf)
            if price.min() < torch.inf:
                pair = near[k][list({*divmod(int(price.argmin()), len(near[k]))})]
                on[k, pair] = ~on[k, pair]
                good[k] = True
        return good


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
