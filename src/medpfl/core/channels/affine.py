"""Public affine maps, identified by probing: each output's input coordinate, scale and shift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Monomial", "Probed", "coordinates_of", "linear", "monomial_of", "tensors_of"]

_DIGIT = 1024
"""Base of the digits in which indices are probed; its digits are exact in every floating-point type."""

_AGREEMENT = 1e-6
"""Relative difference below which two results count as equal: functions may compute in float32."""

_SCALES = (2.0**-20, 1.0, 2.0**10, 2.0**40)
"""Sizes of the probes relative to the update: clipping and rounding are linear only at some sizes."""


def coordinates_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return all coordinates (D,) in float64, tensor after tensor."""
    return torch.cat([t.detach().double().flatten() for t in tensors.values()])


def tensors_of(values: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return coordinates (D,) as tensors with the shapes of `like` and the dtype of `values`."""
    parts = values.split([t.numel() for t in like.values()])
    return {name: part.view(t.shape) for part, (name, t) in zip(parts, like.items(), strict=True)}


class Probed:
    """An update's function as a function of flat coordinates (D,), in float64 if the function supports it.

    Args:
        function: maps tensors to tensors with the same names and shapes.
        like: tensors with the names, shapes, device and dtype that the function expects.

    Attributes:
        fits: True if the result has the names and shapes of `like`.
        epsilon: machine epsilon of the dtype in which the function is called.
    """

    def __init__(self, function: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], like: Mapping[str, Tensor]):
        self.function, self.like = function, like
        self.own = next(iter(like.values()))
        self.size = sum(t.numel() for t in like.values())
        self.dtype = torch.float64
        try:
            made = self._called(self.own.new_zeros(self.size, dtype=self.dtype))
        except RuntimeError:  # the function's own matrices may not be float64
            self.dtype = self.own.dtype
            made = self._called(self.own.new_zeros(self.size))
        self.fits = {k: t.shape for k, t in made.items()} == {k: t.shape for k, t in like.items()}
        self.epsilon = torch.finfo(self.dtype).eps
        self.shift = self._joined(made) if self.fits else self.own.new_zeros(self.size)

    def __call__(self, values: Tensor) -> Tensor:
        """Return the function's value at coordinates (D,), in float64."""
        return self._joined(self._called(values.to(self.dtype)))

    def normal(self, generator: torch.Generator) -> Tensor:
        """Draw standard normal coordinates (D,) in float64."""
        return torch.randn(self.size, generator=generator, dtype=torch.float64).to(self.own.device)

    def _called(self, values: Tensor) -> Mapping[str, Tensor]:
        return self.function(tensors_of(values, self.like))

    def _joined(self, made: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([made[name].double().flatten() for name in self.like])


@dataclass(frozen=True, eq=False)
class Monomial:
    """A map of D coordinates in which each output depends on at most one input: ``scale * x[source] + shift``.

    It covers permutations, sign flips, scalings, masks, shifts, copies, and compositions of these.

    Attributes:
        scale: (D,) in float64; 0 if the output is the shift alone.
        source: (D,) index of the input coordinate; 0 if there is none.
        shift: (D,) in float64.
    """

    scale: Tensor
    source: Tensor
    shift: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Apply the map to coordinates (D,)."""
        return self.scale * values[self.source] + self.shift

    def after(self, other: Monomial) -> Monomial:
        """Compose: the other map, then this one."""
        return Monomial(self.scale * other.scale[self.source], other.source[self.source], self(other.shift))

    @property
    def trivial(self) -> bool:
        """True if the map is the identity."""
        same = self.source == torch.arange(len(self.source), device=self.source.device)
        return bool(same.all() and (self.scale == 1).all() and (self.shift == 0).all())


def monomial_of(probed: Probed, unit: float) -> Monomial | None:
    """Identify a function as a monomial map by probing; return ``None`` if it is no such map.

    Args:
        probed: the function.
        unit: typical size of its input coordinates.
    """
    with torch.no_grad():
        if not probed.fits or not probed.shift.isfinite().all():
            return None
        shift, size = probed.shift, max(unit, float(probed.shift.abs().max()), 1e-30)
        step = 2.0 ** torch.tensor(size).double().log2().ceil().item()
        ones = torch.ones_like(shift)
        scale = _snapped((probed(step * ones) - shift) / step, probed.epsilon * (1 + shift.abs() / step))
        source = _sources(probed, step, scale)
        if source is None:
            return None
        found = Monomial(scale, source, shift)
        return found if _confirmed(probed, found, unit) else None


def _snapped(scale: Tensor, error: Tensor) -> Tensor:
    """Round scales to float32 where rounding errors may explain the difference, and to 0 where they may explain all."""
    scale = torch.where(scale.abs() <= 8 * error, 0.0, scale)
    near = scale.float().double()
    return torch.where((scale - near).abs() <= 8 * error * scale.abs().clamp(min=1), near, scale)


def _sources(probed: Probed, step: float, scale: Tensor) -> Tensor | None:
    """Find each output's input coordinate (D,), digit by digit; return ``None`` if an output is no digit."""
    places = torch.arange(probed.size, device=scale.device)
    source, base, reads = torch.zeros_like(places), 1, scale != 0
    while base < probed.size:
        digits = (places // base % _DIGIT).double()
        told = torch.where(reads, (probed(step * digits) - probed.shift) / (step * scale.where(reads, 1.0)), 0.0)
        whole = told.round()
        if not ((told - whole).abs() <= 0.01).all() or whole.min() < 0 or whole.max() >= _DIGIT:
            return None
        source, base = source + base * whole.long(), base * _DIGIT
    return source if source.max() < probed.size else None


def _confirmed(probed: Probed, found: Monomial, unit: float) -> bool:
    """Return True if the function equals the map at random coordinates of several sizes."""
    generator = torch.Generator().manual_seed(0)
    for size in _SCALES:
        values = unit * size * probed.normal(generator)
        allowed = _AGREEMENT * ((found.scale * values[found.source]).abs() + probed.epsilon * found.shift.abs() * 1e7)
        if not ((probed(values) - found(values)).abs() <= allowed).all():
            return False
    return True


def linear(probed: Probed, unit: float) -> bool:
    """Return True if a function is affine: probes at several sizes check additivity and homogeneity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if not probed.fits or not probed.shift.isfinite().all():
            return False
        one, other = (unit * probed.normal(generator) for _ in range(2))
        first, second = (probed(values) - probed.shift for values in (one, other))
        for size in _SCALES:
            both = (probed(size * (one + other)) - probed.shift) / size
            error = _AGREEMENT * (first.norm() + second.norm()) + 1e2 * probed.epsilon * probed.shift.norm() / size
            if not (both - first - second).norm() <= error:
                return False
    return True
