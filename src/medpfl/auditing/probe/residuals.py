"""Residuals: differences between sent updates and their disclosure, beyond the disclosed noise and bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from medpfl.auditing.probe.plays import Play, apart
from medpfl.core.types import Tensors

__all__ = ["HIDDEN", "Noise", "Residual", "Share", "hidden", "is_identity", "noise_told", "repeated", "same"]

# Thresholds. "Measured" is the worst value over every built-in defense by itself, at several settings, on LeNet,
# MLP, ConvNet and ResNet, under FedSGD and FedAvg, with one image and with eight, in float32.

_SAME = 1e-10
"""Squared distance over squared norm up to which two updates count as the same: rounding in float32 leaves less."""

_UNEXPLAINED = 1e-4
"""Share of the sent energy (sum of squares) that noise and bounds may leave unexplained: 1 % of the norm. Measured: 0;
an update scaled by one half leaves 0.25, a permuted one about 1."""

_UNEXPLAINED_TENSOR = 1e-3
"""The same for each tensor, so that large ones do not hide a small one, such as the last bias. Measured: 0."""

_MOST, _TAIL = 4.0, 130.0
"""Ratio of observed to disclosed noise energy above which there is too much noise: ``4 + 130 / coordinates``. Twice the
disclosed deviation is no chance; one coordinate of Laplace noise exceeds the tail once in ten million draws."""

_LEAST = 0.2
"""The same ratio for the whole update, below which there is too little noise: less than half the disclosed deviation.
Rounding is disclosed as an average, which is too high if most coordinates are small."""

_LEAST_TENSOR, _FEW = 0.02, 32
"""The same ratio for one tensor, below which it has next to no noise, and the fewest coordinates for such a test."""

_MATERIAL = 1e-3
"""Disclosed deviation, over a tensor's root mean square, from which on noise is compared: less hides nothing."""

_REPEATED, _CHANCE = 0.3, 6.0
"""Correlation between two seeds' noise above which it is a repetition; with few coordinates, in standard errors."""

_FAR = 6.0
"""Standard deviations by which disclosed noise never moves a value."""

_LOOSE, _MANY = 0.05, 100
"""Ratio of largest error to bound below which bounds mean nothing, and the fewest bounded coordinates to test it."""


HIDDEN, _REPEATS = 0.05, 1e-5
"""Share of the energy that may be hidden (`hidden`), and the relative difference up to which a coordinate repeats.
Pruning hides only coordinates sent as zero; new draws do not repeat."""


class Share(NamedTuple):
    """A share of a tensor's energy, and the tensor's name."""

    value: float = 0.0
    name: str = ""


class Noise(NamedTuple):
    """Observed and disclosed noise, as sums of squares over `places` coordinates."""

    found: float = 0.0
    told: float = 0.0
    places: int = 0

    def plus(self, other: Noise) -> Noise:
        """Add another tensor's noise."""
        return Noise(self.found + other.found, self.told + other.told, self.places + other.places)

    @property
    def ratio(self) -> float:
        """The observed standard deviation divided by the disclosed one."""
        return sqrt(self.found / self.told) if self.told else 1.0

    def too_little(self, drift: float) -> bool:
        """Return True if the whole update has too little noise."""
        return self.places >= _FEW and self.found < _LEAST / drift * self.told

    def next_to_none(self, drift: float) -> bool:
        """Return True if one tensor has next to no noise."""
        return self.places >= _FEW and self.found < _LEAST_TENSOR / drift * self.told


@dataclass(frozen=True)
class Residual:
    """The part of one round without an explanation in its disclosure.

    Attributes:
        unexplained: share of the sent energy beyond the disclosed noise and bounds.
        worst: the same share for the tensor with the largest one.
        noise: observed and disclosed noise, where noise alone is disclosed and large enough to matter.
        quiet: first tensor with much disclosed and next to no observed noise; ``""`` if there is none.
        zeros: share of coordinates sent as zero although the disclosed value is not zero.
        loose: True if the bounds are far wider than the errors.
        blind: True if all nonzero coordinates are disclosed as unknown.
        drift: factor by which the noise may deviate further from the disclosed noise.
    """

    unexplained: float
    worst: Share
    noise: Noise
    quiet: str
    zeros: float
    loose: bool
    blind: bool
    drift: float

    @staticmethod
    def of(play: Play, drift: float = 1.0) -> Residual:
        """Compute the residual for one round, with one tensor in memory at a time."""
        beyond = told = energy = 0.0
        worst, noise, quiet = Share(), Noise(), ""
        known = zeros = size = bounded = 0
        reach, anything, something = 0.0, False, False
        for row in _rows(play):
            own_beyond, own_told, own_energy, places = _energies(row)
            beyond, told, energy = beyond + own_beyond, told + own_told, energy + own_energy
            worst = max(worst, Share(_share(own_beyond, own_told, own_energy, places, drift), row.name))
            own = _noise(row)
            noise, quiet = noise.plus(own), quiet or (row.name if own.next_to_none(drift) else "")
            ratio, count = row.bounded()
            reach, bounded = max(reach, ratio), bounded + count
            known, zeros, size = known + places, zeros + _zeroed(row), size + row.sent.numel()
            anything = anything or bool(row.sent.any())
            something = something or row.sum(row.sent.abs()) > 0
        return Residual(
            _share(beyond, told, energy, known, drift),
            worst,
            noise,
            quiet,
            zeros / size,
            loose=bounded >= _MANY and reach < _LOOSE,
            blind=anything and not something,
            drift=drift,
        )

    @property
    def too_large(self) -> bool:
        """True if too much is left unexplained."""
        return self.unexplained > _UNEXPLAINED or self.worst.value > _UNEXPLAINED_TENSOR

    @property
    def too_small(self) -> bool:
        """True if there is less noise than disclosed."""
        return self.noise.too_little(self.drift) or bool(self.quiet)


@dataclass(frozen=True, eq=False)
class _Row:
    """One tensor in a round, in float64; `known`, `variance` and `bound` are ``None`` if not disclosed."""

    name: str
    sent: Tensor
    raw: Tensor
    told: Tensor
    known: Tensor | None
    variance: Tensor | None
    bound: Tensor | None

    @cached_property
    def error(self) -> Tensor:
        return self.sent - self.told

    @cached_property
    def material(self) -> Tensor | None:
        """A mask of coordinates with only noise disclosed, large enough to matter; ``None`` if there are none."""
        if self.known is None or self.variance is None or not bool(self.sent.any()):
            return None
        where = self.known & (self.variance > _MATERIAL**2 * self.sent.square().mean())
        where = where if self.bound is None else where & (self.bound == 0)
        return where if bool(where.any()) else None

    @property
    def places(self) -> int:
        """The number of coordinates not disclosed as unknown."""
        return self.sent.numel() if self.known is None else int(self.known.sum())

    def sum(self, values: Tensor) -> float:
        """Return the sum of values over these coordinates."""
        return float(values.sum() if self.known is None else (values * self.known).sum())

    def bounded(self) -> tuple[float, int]:
        """Return the largest ratio of error to bound, and the number of bounded coordinates."""
        if self.bound is None or not (count := int((self.bound > 0).sum())):
            return 0.0, 0
        return float((self.error.abs() / self.bound).masked_fill(self.bound == 0, 0).max()), count


def _rows(play: Play) -> Iterator[_Row]:
    channel = play.channel
    for name, sent in play.sent.items():
        known = variance = None
        if channel.precision is not None:
            precision = channel.precision[name].double()
            known = precision > 0
            variance = torch.where(known, 1 / precision.clamp(min=1e-300), 0.0)
        bound = None if channel.bounds is None else channel.bounds[name].double()
        yield _Row(name, sent.double(), play.raw[name].double(), play.told[name].double(), known, variance, bound)


def _energies(row: _Row) -> tuple[float, float, float, int]:
    """Return the energies of errors beyond bounds, disclosed noise and update, and the number of known coordinates."""
    beyond = row.error if row.bound is None else (row.error.abs() - row.bound).clamp(min=0)
    told = 0.0 if row.variance is None else row.sum(row.variance)
    size = torch.maximum(row.sent.abs(), row.told.abs())
    return row.sum(beyond.square()), told, row.sum(size.square()), row.places


def _share(beyond: float, told: float, size: float, count: int, drift: float) -> float:
    most = drift * _MOST + _TAIL / max(count, 1)
    return max(beyond - most * told, 0.0) / size if size else 0.0


def _noise(row: _Row) -> Noise:
    where = row.material
    if where is None or row.variance is None:
        return Noise()
    return Noise(float((row.error.square() * where).sum()), float((row.variance * where).sum()), int(where.sum()))


def _zeroed(row: _Row) -> int:
    """Count coordinates sent as zero although the undefended value is not zero and the disclosed one clearly is not.

    Coordinates disclosed as unknown, noisy or bounded do not count.
    """
    where = (row.sent == 0) & (row.raw != 0)
    if not bool(where.any()):
        return 0
    size = row.told.square()
    floor = _MATERIAL**2 * size.mean()
    where &= size > floor
    if row.known is not None and row.variance is not None:
        where &= row.known & (row.variance <= floor) & (size > _FAR**2 * row.variance)
    if row.bound is not None:
        where &= row.bound == 0
    return int(where.sum())


def repeated(one: Play, other: Play) -> float:
    """Return the correlation between two rounds' noise if it is too high for chance; else 0."""
    cross = squares = others = 0.0
    count = 0
    for a, b in zip(_rows(one), _rows(other), strict=True):
        if a.material is None or b.material is None or a.variance is None or b.variance is None:
            continue
        where = a.material & b.material
        x = torch.where(where, a.error * a.variance.rsqrt(), 0.0).flatten()
        y = torch.where(where, b.error * b.variance.rsqrt(), 0.0).flatten()
        cross, squares, others = cross + float(x @ y), squares + float(x @ x), others + float(y @ y)
        count += int(where.sum())
    if not count or not squares * others:
        return 0.0
    correlation = cross / sqrt(squares * others)
    return correlation if correlation > max(_REPEATED, _CHANCE / sqrt(count)) else 0.0


def hidden(one: Play, again: Play) -> float:
    """Return the share of sent energy that repeats under another seed but is disclosed as unknown or with wide bounds.

    A bound is wide if it is at least as large as the sent value, so it says nothing about the coordinate.
    """
    found = energy = 0.0
    for a, b in zip(_rows(one), _rows(again), strict=True):
        lost = torch.zeros_like(a.sent, dtype=torch.bool) if a.known is None else ~a.known
        if a.bound is not None:
            lost = lost | (a.bound >= a.sent.abs())
        repeats = (a.sent - b.sent).abs() <= _REPEATS * a.sent.abs()
        square = a.sent.square()
        found, energy = found + float((square * (lost & repeats)).sum()), energy + float(square.sum())
    return found / energy if energy else 0.0


def noise_told(play: Play) -> bool:
    """Return True if the disclosure includes noise large enough to matter."""
    return any(row.material is not None for row in _rows(play))


def same(one: Tensors, other: Tensors) -> bool:
    """Return True if two updates are equal up to rounding."""
    return apart(one, other) <= _SAME


def is_identity(play: Play) -> bool:
    """Return True if the disclosure claims an unchanged update."""
    channel = play.channel
    untold = (channel.precision, channel.bounds, channel.moment) == (None, None, None)
    return untold and same(play.told, play.given)
