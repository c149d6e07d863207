"""A convolution's inputs from the gradient of its kernels, one small system for all of its channels.

Of outputs with derivatives p at L places, the kernels' gradient is ``G[o, c, k] = sum_l p[o, l] x[c, place(k, l)]``:
linear in the inputs, each channel of them for itself, and of one matrix. Rectified networks leave most rows of p in
doubt at a place or two; the equations are many times the unknowns, so that rows which do not fit can be told.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Inputs", "active", "inputs", "places", "pulls"]

_SINGULAR = 1e8
"""Inflation of the variance of an input by the others, from which on the system does not tell it."""

_ODD = 30.0
"""A row whose residual is so many times the median does not fit, where float32 is all that there is to it."""

_ROUNDED, _SPOILED = 1e-6, 3.0
"""Relative residual up to which float32 is cause enough. A median above it may be that of a solution which a row in
doubt has spoiled: then rows of so many times the median do not fit."""

_TRIMS, _SPARE = 16, 1.5
"""Rows are left out at most so often, and equations kept at least so many times the unknowns."""


class Inputs(NamedTuple):
    """Inputs of C channels at D places, as a kernel's gradient tells them.

    Attributes:
        value: (C, D).
        error: (C, D) its deviation, as the residuals show it.
        odd: (O,) output channels whose rows do not fit.
        residual: median of the relative residuals of the others.
    """

    value: Tensor
    error: Tensor
    odd: Tensor
    residual: float


def places(size: tuple[int, ...], kernel: tuple[int, ...], geometry: dict[str, Any]) -> Tensor:
    """(K, L) which of the D inputs each weight of a kernel meets at each place of the outputs; D: padding.

    Args:
        size: (H, W) of the inputs.
        kernel: (height, width).
        geometry: ``stride``, ``padding`` and ``dilation`` of `torch.nn.functional.unfold`.
    """
    count = size[0] * size[1]
    numbers = torch.arange(1, count + 1, dtype=torch.float64).view(1, 1, *size)
    seen = functional.unfold(numbers, kernel, **geometry)[0].long()
    return torch.where(seen == 0, count, seen - 1)


def inputs(pull: Tensor, gradient: Tensor, where: Tensor, count: int) -> Inputs | None:
    """The inputs by least squares over the rows that fit; ``None`` where the system does not determine them all.

    Args:
        pull: (O, L) derivative of the loss by the outputs.
        gradient: (O, C, K) of the kernels.
        where: as `places` has it.
        count: D.
    """
    channels, weights = len(pull), len(where)
    system = pull.new_zeros(channels, weights, count + 1)
    system.scatter_add_(2, where.expand(channels, -1, -1), pull[:, None].expand(-1, weights, -1))
    system = system[:, :, :count]
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
    """Residuals (O,) against the sizes of rows, their median among some, and the limit of those that fit.

    Rounding is a share of each row; noise is the same of all, so that small rows seem not to fit.
    """
    share = torch.where(size > 0, rest / size, 0.0)
    median = float(share[keep].median())
    if median < _ROUNDED:
        return share, median, max(_ODD * median, torch.finfo(torch.float64).eps)
    share = rest / (size + size[size > 0].median())
    median = float(share[keep].median())
    return share, median, _SPOILED * median


def _solve(system: Tensor, sent: Tensor) -> tuple[Tensor, Tensor] | None:
    """Inputs (D, C), and the roots (D,) of the diagonal of the inverse of the normal matrix."""
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
    """(R, L) derivatives by the outputs of some channels, from the inputs (C, D) and gradients (R, C, K) of these."""
    padded = torch.cat([value, torch.zeros_like(value[:, :1])], 1)
    seen = padded[:, where].flatten(0, 1).T  # (L, C * K)
    factor, failed = torch.linalg.cholesky_ex(seen @ seen.T)
    return None if failed else torch.cholesky_solve(seen @ gradient.flatten(1).T, factor).T


def active(pull: Tensor, gradient: Tensor, where: Tensor, count: int) -> Tensor | None:
    """(O, L) which outputs a rectifier behind them passed; ``None`` where that cannot be told.

    At the rim of a small map some weights of a kernel meet one place's inputs and padding at all others, so that their
    gradient is zero unless that place was passed.

    Args:
        pull: (O, L) derivative by the outputs if all had been passed.
        gradient, where, count: as in `inputs`.
    """
    real = where < count
    alone = real & (real.sum(1, keepdim=True) == 1)
    if not alone.any(0).all():
        return None
    told = (gradient.square().sum(1) @ alone.to(gradient)).sqrt() / pull.abs().clamp(min=1e-300)  # (O, L)
    told = torch.where(pull == 0, 0.0, told)
    return told > told.amax(0) / 2
