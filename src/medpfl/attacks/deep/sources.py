"""Separation of a kernel's gradient: a sum of outer products with non-negative, sparse inputs.

At a kernel offset that meets one position of each image, a convolution's gradient is ``G = sum_i d_i x_i^T``, one term
per image. The inputs x_i are outputs of a ReLU: not negative, and zero at many channels. In the space of G's rows they
are extreme rays of the cone of non-negative vectors. A ray found by chance has r - 1 zeros, where r is the rank; a true
input has many more. Batch norm, labels and the loss change d_i only, so the method does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["DEVIATIONS", "GAP", "RowSpace", "Sources", "required", "separate"]

DEVIATIONS = 6.0
"""Standard deviations of the noise up to which a value counts as zero, and two values as the same."""

GAP = 10.0
"""Smallest ratio of two neighboring singular values that shows a rank."""

_NEGATIVE = 3.0
"""Factor of the limit for a zero by which an entry may be below zero, because a ray's own error adds to an entry's."""

_EXACT = 1e-8
"""Share of a ray's mean value below which an entry is zero, where the matrix has no noise."""

_INDEPENDENT = 1e-3
"""Smallest part of a source, relative to its size, that is not a combination of those found before."""

_SPARE = 10
"""Entries that must test a vector beyond its number of unknowns; at least as many more as unknowns are required too."""

_ROUNDING = 1e-14
"""Relative size of a singular value that may be zero."""

_LEVERAGE = 0.999
"""Leverage above which a single zero decides. Such a ray may be one source with part of another subtracted."""

_APART = 3
"""Further zeros required for each value between one and three times their limit. Among dense values, as many small ones
pass for zeros as noise allows."""

_ROUNDS = 6
"""Number of times a ray is refined."""

_DIRECTIONS = 8
"""Further linear programs for each source that the channels' did not find."""

_SLACK, _WIDEST = 1e-7, 0.3
"""Smallest slack of the linear programs, which is their own accuracy, and largest."""


@dataclass(frozen=True, eq=False)
class Sources:
    """The sources of a gradient matrix (O, C), with their certificates.

    Attributes:
        inputs: (S, C) the inputs x_i, each of unit norm; in no particular order. S is at most the rank.
        zeros: number of zeros of each input; channels that no input uses are left out, except with a single source,
            which needs no zeros.
        rank: r, the number of terms in the sum; 0 if the spectrum shows none.
        gap: ratio of the last singular value that counts to the first that does not.
        noise: standard deviation of the noise on an entry of the matrix.
    """

    inputs: Tensor
    zeros: tuple[int, ...]
    rank: int
    gap: float
    noise: float

    @property
    def required(self) -> int:
        """Number of zeros from which on a ray counts as a source; a ray found by chance has ``rank - 1``."""
        return required(self.rank)

    @property
    def complete(self) -> bool:
        """True if every term of the sum was found."""
        return 0 < self.rank == len(self.inputs)

    @property
    def evidence(self) -> str:
        """Why the sources are right."""
        if self.rank == 1:
            return "a single source needs no zeros"
        counts = f"{self.required} are required and {self.rank - 1} come by chance"
        return f"every source has at least {min(self.zeros)} zeros, {counts}"


def separate(matrix: Tensor) -> Sources:
    """Return the certified sources of a gradient matrix.

    One linear program per channel finds the ray with the most of this channel. Each ray is then refined on all channels
    where it is zero, hundreds instead of the r - 1 that determine it. A ray is certified if it is not negative, has at
    least ``max(2 r, r + 10)`` zeros, is determined without any single one of them, and is independent of the others.
    Under noise, small values pass for zeros, so further zeros are required for each value near the limit. Channels that
    are zero in all rows are left out: they are zeros of every vector.

    Args:
        matrix: (O, C) gradient for one kernel offset. Its rank must be below three quarters of the smaller side.
    """
    values = matrix.detach().cpu().double().numpy()
    space = RowSpace.of(values)
    rays = _certified(space) if space.gap > GAP else []
    inputs = np.array([ray @ space.rows for ray, _ in rays]).reshape(len(rays), values.shape[1])
    rank = len(space.rows) if space.gap > GAP else 0
    return Sources(torch.from_numpy(inputs), tuple(zeros for _, zeros in rays), rank, space.gap, space.noise)


def required(unknowns: int) -> int:
    """Return the number of entries that must test a vector before it is certified, by its number of unknowns."""
    return max(2 * unknowns, unknowns + _SPARE)


@dataclass(frozen=True, eq=False)
class RowSpace:
    """An orthonormal basis (r, C) of a matrix's rows, singular values (r,), and the rest of the spectrum as noise."""

    rows: Any
    sizes: Any
    gap: float
    noise: float

    @staticmethod
    def of(matrix: Any) -> RowSpace:
        """Return the row space. The rank is at the largest gap among values above three times the spectrum's tail."""
        if not np.isfinite(matrix).all() or not matrix.any():
            return RowSpace(np.zeros((0, matrix.shape[1])), np.zeros(0), 0.0, 0.0)
        live = matrix.any(axis=0)
        part = matrix[matrix.any(axis=1)][:, live]  # exact zeros have no noise, and would pass for a gap
        _, sizes, found = np.linalg.svd(part, full_matrices=False)
        count = max(3 * len(sizes) // 4, 1)
        following = np.maximum(np.append(sizes, 0.0)[1 : count + 1], _ROUNDING * sizes[0])
        tail = sizes[-max(len(sizes) // 4, 1) :].max() if len(sizes) > 1 else 0.0
        ratios = np.where(sizes[:count] > 3 * tail, sizes[:count] / following, 0.0)
        rank = int(ratios.argmax()) + 1
        free = max((part.shape[0] - rank) * (part.shape[1] - rank), 1)
        noise = float(np.sqrt((sizes[rank:] ** 2).sum() / free))
        rows = np.zeros((rank, matrix.shape[1]))
        rows[:, live] = found[:rank]
        return RowSpace(rows, sizes[:rank], float(ratios[rank - 1]), noise)

    @property
    def alive(self) -> Any:
        """Basis (r, L) restricted to the channels that are not zero in all rows."""
        height = np.linalg.norm(self.sizes[:, None] * self.rows, axis=0)
        limit = max(DEVIATIONS * self.noise * np.sqrt(len(self.rows)), 1e-12 * height.max(initial=0.0))
        return self.rows[:, height > limit]

    def limit(self, ray: Any) -> float:
        """Return the largest size of an entry of ``ray @ rows`` that counts as zero."""
        return float(DEVIATIONS * self.noise * np.linalg.norm(ray / self.sizes))


def _certified(space: RowSpace) -> list[tuple[Any, int]]:
    """Return the certified rays (r,) and their numbers of zeros. The search ends once all are found."""
    alive, found = space.alive, []
    if len(space.rows) == 1:  # the only term is the row itself
        ray, zeros, positive = _refined(np.ones(1), space.rows, space)
        return [(ray, zeros)] if positive else []
    if alive.shape[1] < required(len(space.rows)):
        return []
    for candidate in chain(_rays(alive, space), _others(found, alive, space)):
        ray, zeros, positive = _refined(candidate, alive, space)
        enough = positive and zeros >= required(len(space.rows)) and _determined(ray, alive, space)
        if enough and _independent(ray, [one for one, _ in found]):
            found.append((ray, zeros))
        if len(found) == len(space.rows):
            found[:] = [one for k, one in enumerate(found) if _extreme(k, found, alive, space)]
        if len(found) == len(space.rows):
            break
    return found


def _determined(ray: Any, alive: Any, space: RowSpace) -> bool:
    """Return True if a ray's zeros stand apart from its other values, and no single one of them decides."""
    values, limit = ray @ alive, _zero_limit(ray, alive, space)
    zero = np.abs(values) < limit
    if zero.sum() < required(len(alive)) + _APART * ((values >= limit) & (values < 3 * limit)).sum():
        return False
    span = np.linalg.svd(alive[:, zero], full_matrices=False)[2][: len(alive) - 1]
    return bool((span**2).sum(0).max() < _LEVERAGE)


def _zero_limit(ray: Any, alive: Any, space: RowSpace) -> float:
    """Return the size below which a refined ray's entries count as zero."""
    return max(space.limit(ray), _EXACT * float(np.abs(ray @ alive).mean()))


def _independent(ray: Any, others: list[Any]) -> bool:
    """Return True if a ray of unit norm is no combination of others."""
    if not others:
        return True
    basis = np.linalg.qr(np.array(others).T)[0]
    return bool(np.linalg.norm(ray - basis @ (basis.T @ ray)) > _INDEPENDENT)


def _extreme(k: int, found: list[tuple[Any, int]], alive: Any, space: RowSpace) -> bool:
    """Return True if no other ray can be subtracted from the k-th without making it negative."""
    ray = found[k][0]
    values = ray @ alive
    zero = values <= max(space.limit(ray), 1e-6 * values.max())
    others = [other for j, (other, _) in enumerate(found) if j != k]
    return all(((other @ alive)[zero] > max(space.limit(other), 1e-6)).any() for other in others)


def _slack(alive: Any, space: RowSpace) -> float:
    noise = DEVIATIONS * space.noise * np.sqrt(1.5 * alive.shape[1]) / np.median(space.sizes)
    return max(float(noise), _SLACK)


def _most(direction: Any, alive: Any, slack: float) -> Any:
    """Return the solver's answer for the vector of mean 1 above -slack that has the most of a direction (r,)."""
    from scipy.optimize import linprog  # slow to import

    return linprog(
        -direction,
        A_ub=-alive.T,
        b_ub=np.full(alive.shape[1], slack),
        A_eq=alive.mean(1)[None],
        b_eq=[1.0],  # a mean of 1, not a sum: the solver's accuracy of 1e-7 must be small beside an entry
        bounds=(None, None),
        method="highs",
    )


def _others(found: list[tuple[Any, int]], alive: Any, space: RowSpace) -> Iterator[Any]:
    """Yield candidates (r,) outside the span of the rays found so far, for sources with the most of no channel."""
    draws = np.random.default_rng(0)
    for _ in range(_DIRECTIONS * (len(alive) - len(found)) if found else 0):
        basis = np.linalg.qr(np.array([ray for ray, _ in found]).T)[0]
        direction = draws.standard_normal(len(alive))
        answer = _most(direction - basis @ (basis.T @ direction), alive, _slack(alive, space))
        if answer.status == 0:
            yield answer.x


def _rays(alive: Any, space: RowSpace) -> Iterator[Any]:
    """Yield candidates (r,): for each channel, the vector of mean 1 above -slack that has the most of it."""
    slack = _slack(alive, space)
    order = np.argsort(-np.linalg.norm(alive, axis=0))
    while _most(alive[:, order[0]], alive, slack).status != 0 and slack < _WIDEST:
        slack *= 3
    met: set[tuple[float, ...]] = set()
    for answer in (_most(alive[:, channel], alive, slack) for channel in order):
        key = () if answer.status != 0 else tuple(np.round(answer.x / np.linalg.norm(answer.x), 4))
        if key and key not in met:
            met.add(key)
            yield answer.x


def _refined(ray: Any, alive: Any, space: RowSpace) -> tuple[Any, int, bool]:
    """Return a ray determined by all its zeros, the number of these, and whether it is not negative."""
    for k in range(_ROUNDS):
        values = np.abs(ray @ alive)
        zero = values < max(space.limit(ray), 10.0 ** (-4 - k) * values.mean())
        if zero.sum() < len(alive):
            break
        ray = np.linalg.svd(alive[:, zero].T, full_matrices=False)[2][-1]
    ray = ray * np.sign((ray @ alive).sum()) / np.linalg.norm(ray)
    values, limit = ray @ alive, space.limit(ray)
    zeros = int((np.abs(values) < _zero_limit(ray, alive, space)).sum())
    return ray, zeros, bool(values.min() > -_NEGATIVE * limit - 1e-6 * values.max())
