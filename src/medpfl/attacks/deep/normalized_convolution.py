"""The inputs of a convolution with batch norm in train mode behind it, for all images of a batch at once.

The convolution's gradient is linear in its inputs once the loss's derivative with respect to its outputs is known.
Batch norm makes this derivative depend on the inputs:
``delta = gamma / sigma * (dy - dL/dbeta / N - zhat * dL/dgamma / N)``. Both sums are parameters' gradients, and so were
sent. A fixed point settles zhat and sigma: solve for the inputs, recompute both from them, and repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from medpfl.attacks.deep.graph import Graph
from medpfl.attacks.deep.kernel_systems import geometry_of, is_plain, kernels, places_of, pulls, system_of
from medpfl.core.types import Tensors

__all__ = ["NormalizedConvolution", "SolvedInputs", "normalized_layer"]

_OPS = torch.ops.aten

_STEPS, _SETTLED = 25, 1e-8
"""Maximum steps of the fixed point, and the relative change of the inputs at which it has settled."""

_STUCK = 0.7
"""Ratio of a step's residual to the one before, above which the fixed point has stopped."""

_ODD, _EXACT, _SPARE = 30.0, 1e-5, 1.2
"""An output channel does not fit if its residual is this many times the median and above `_EXACT`. Channels may be left
out while the ratio of equations to unknowns stays above `_SPARE`."""

_BLIND = 1e-5
"""Relative size of a sum of columns that vanishes."""

_CLUSTER = 60.0
"""Standard deviations within which values may be the same."""

_FREE = 0.02
"""Smallest share of the equations that is counted as free when the noise is estimated."""


class SolvedInputs(NamedTuple):
    """Inputs with C channels at D positions of all images, as the gradient determines them.

    Attributes:
        value: (C, D) inputs.
        error: (C, D) their standard deviation, from the residuals.
        delta: (O, L) the loss's derivative with respect to the convolution's outputs.
        odd: (O,) output channels that do not fit.
        residual: relative residual of the other channels.
    """

    value: Tensor
    error: Tensor
    delta: Tensor
    odd: Tensor
    residual: float


@dataclass(frozen=True, eq=False)
class NormalizedConvolution:
    """A convolution, the batch norm behind it, and their sent gradients. Positions run over all images in turn.

    Attributes:
        kernel: (O, C, ...) weight.
        geometry: ``stride``, ``padding`` and ``dilation`` of the convolution.
        shape: (N, C, H, W) of the inputs.
        where: (K, L) input position of each kernel weight at each output position; D for padding.
        sent: (O, C, K) gradient of the weight.
        gamma, eps: the batch norm's weight (O,) and epsilon.
        gamma_sent, beta_sent: (O,) gradients of the batch norm's weight and bias.
        rectified: True if the inputs are a ReLU's outputs, so that the least of them is zero.
    """

    kernel: Tensor
    geometry: dict[str, Any]
    shape: torch.Size
    where: Tensor
    sent: Tensor
    gamma: Tensor
    eps: float
    gamma_sent: Tensor
    beta_sent: Tensor
    rectified: bool

    @property
    def count(self) -> int:
        """D, the number of input positions of all images."""
        return self.shape[0] * self.shape[2] * self.shape[3]

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution's outputs (O, L) for inputs (C, D)."""
        count, channels, *edges = self.shape
        images = x.view(channels, count, *edges).transpose(0, 1)
        return functional.conv2d(images, self.kernel, None, **self.geometry).transpose(0, 1).flatten(1)

    def normalized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return zhat (O, L), and sigma (O, 1), for inputs (C, D)."""
        z = self.forward(x)
        variance, mean = torch.var_mean(z, 1, unbiased=False, keepdim=True)
        sigma = (variance + self.eps).sqrt()
        return (z - mean) / sigma, sigma

    def derivative(self, dy: Tensor, x: Tensor) -> Tensor:
        """Return the derivative (O, L) with respect to the convolution's outputs, from that behind the batch norm."""
        zhat, sigma = self.normalized(x)
        return self.gamma[:, None] / sigma * (dy - self._sums(zhat))

    def _sums(self, zhat: Tensor | float) -> Tensor:
        return (self.beta_sent[:, None] + zhat * self.gamma_sent[:, None]) / self.where.shape[1]

    def told(self, x: Tensor, rows: Tensor) -> Tensor | None:
        """Return the derivative (R, L) behind the batch norm for some output channels, from their own gradients.

        It is ``None`` if the inputs (C, D) do not determine it.
        """
        delta = pulls(x, self.sent[rows], self.where)
        if delta is None:
            return None
        zhat, sigma = self.normalized(x)
        return delta * (sigma / self.gamma[:, None])[rows] + self._sums(zhat)[rows]

    def solve(self, dy: Tensor, size: float, start: Tensor | None = None) -> SolvedInputs | None:
        """Return the inputs; ``None`` if the gradient does not determine them.

        Args:
            dy: (O, L) derivative behind the batch norm.
            size: root mean square of the inputs, which batch norm hides.
            start: (C, D) inputs to begin with.
        """
        keep = torch.ones(len(self.sent), dtype=torch.bool)
        if start is None:
            scales = self._scales(dy)
            first = None if scales is None else self._linear((dy - self._sums(0.0)) / scales[:, None], keep)
            if first is None:
                return None
            start = first.value
        x, before = start * size / start.square().mean().sqrt(), torch.inf
        found = None
        for _ in range(_STEPS):
            delta = self.derivative(dy, x)
            found = self._linear(delta, keep)
            if found is None or not found.value.isfinite().all():
                return None
            unit = size / found.value.square().mean().sqrt()
            new = found.value * unit
            change, x = float((new - x).norm() / x.norm()), new
            found = found._replace(value=x, error=found.error * unit)
            median, worst = found.share[keep].median(), found.share[keep].max()
            stuck, before = found.residual > _STUCK * before, found.residual
            fewer = keep & (found.share <= worst / 3)  # channels with a wrong ReLU do not fit
            enough = int(fewer.sum()) * self.sent.shape[2] > _SPARE * self.count
            factor = _ODD if median < _EXACT else 3.0
            if stuck and enough and worst > max(factor * float(median), _EXACT):
                keep, before = fewer, torch.inf
            elif change < _SETTLED:
                break
        if found is None:
            return None
        odd = found.share > max(_ODD * float(found.share[keep].median()), _EXACT)
        return SolvedInputs(x, found.error, self.derivative(dy, x), odd, found.residual)

    def _linear(self, delta: Tensor, keep: Tensor) -> _Linear | None:
        """Return the inputs by least squares over the channels to keep."""
        system, sent = system_of(delta, self.where, self.count), self.sent.transpose(1, 2)
        matrix, right = system[keep].flatten(0, 1), sent[keep].flatten(0, 1)
        normal = matrix.T @ matrix
        blind = self._blind(normal)
        if blind and not self.rectified:
            return None
        for alone in blind:
            normal = normal + normal.diagonal().mean() * torch.outer(alone, alone) / alone.sum()
        if not (normal.diagonal() > 1e-12 * normal.diagonal().max()).all():
            return None
        identity = torch.eye(len(normal), dtype=normal.dtype)
        factor, failed = torch.linalg.cholesky_ex(normal + 1e-14 * normal.diagonal().mean() * identity)
        if failed:
            return None
        x = torch.cholesky_solve(matrix.T @ right, factor)
        rest = sent - system @ x
        size = sent.flatten(1).norm(dim=1).clamp(min=1e-300)
        spread = (rest[keep].square().mean((0, 1)) / max(1 - self.count / len(matrix), _FREE)).sqrt()
        error = torch.cholesky_inverse(factor).diagonal().sqrt()[:, None] * spread
        for alone in blind:
            x[alone > 0] -= _least(x[alone > 0], error[alone > 0])  # the least output of a ReLU is zero
        share = rest.flatten(1).norm(dim=1) / size
        return _Linear(x.T, error.T, share, float(rest[keep].norm() / right.norm().clamp(min=1e-300)))

    def _blind(self, normal: Tensor) -> list[Tensor]:
        """Return sets of positions (D,) that may be shifted together by a constant without a change of the gradient.

        With a stride, some positions meet a single kernel weight. Its outputs' derivatives sum to zero behind a batch
        norm.
        """
        found = []
        for places in self.where:
            alone = normal.new_zeros(self.count + 1)
            alone[places] = 1.0
            alone = alone[:-1]
            if alone @ normal @ alone < _BLIND * (alone @ (normal.diagonal() * alone)):
                found.append(alone)
        return found

    def _scales(self, dy: Tensor) -> Tensor | None:
        """Return sigma / gamma (O,) up to a common factor, for zhat = 0.

        With the right factors, the gradient lies in the range of the system that `dy` gives: the least eigenvector of
        ``(I - P) o (G G^T)``, summed over kernel weights, where P projects on this range.
        """
        system = system_of(dy - self._sums(0.0), self.where, self.count)
        span, sizes, _ = torch.linalg.svd(system.flatten(0, 1), full_matrices=False)
        span, sent = span[:, sizes > 1e-6 * sizes[0]], self.sent.transpose(1, 2).flatten(0, 1)
        rest = torch.eye(len(span), dtype=span.dtype) - span @ span.T
        matrix = (rest * (sent @ sent.T)).view(*system.shape[:2], *system.shape[:2]).sum((1, 3))
        unit = matrix.diagonal().clamp(min=1e-300).rsqrt()
        if not matrix.isfinite().all():
            return None
        scales = torch.linalg.eigh(unit[:, None] * matrix * unit)[1][:, 0] * unit
        return scales * scales.sum().sign()


def normalized_layer(graph: Graph, normal: Node, gradients: Tensors) -> NormalizedConvolution | None:
    """Return a batch norm with the convolution before it; ``None`` if one of them is of another kind."""
    (source,) = graph.sources(normal)
    plain = source.target is _OPS.convolution.default and is_plain(graph, source)
    names = graph.parameter(source, 1) if plain else None, graph.parameter(normal, 1), graph.parameter(normal, 2)
    kernel, gamma, beta = (name if name in gradients else None for name in names)
    if kernel is None or gamma is None or beta is None or len(source.users) > 1:
        return None
    values, before = {graph.parameters[n]: graph.fixed[n] for n in graph.parameters}, graph.sources(source)[0]
    return NormalizedConvolution(
        kernel=values[kernel],
        geometry=geometry_of(source),
        shape=graph.shapes[before],
        where=places_of(graph, source),
        sent=kernels(gradients[kernel]),
        gamma=values[gamma],
        eps=float(normal.args[7]),  # type: ignore[arg-type]
        gamma_sent=gradients[gamma],
        beta_sent=gradients[beta],
        rectified=graph.rectifier(before) is not None,
    )


def _least(values: Tensor, error: Tensor) -> Tensor:
    """Return the mean (C,) of the values (D, C) in each column that are its least one within their errors."""
    near = values <= values.min(0).values + _CLUSTER * error
    return (values * near).sum(0) / near.sum(0)


class _Linear(NamedTuple):
    value: Tensor
    error: Tensor
    share: Tensor
    residual: float
