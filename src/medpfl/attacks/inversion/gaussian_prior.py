"""Gaussian priors for images and for the inputs of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.attacks.optimize.coordinates import Spectral

__all__ = ["Expected", "expected_images", "expected_values"]

_SPECTRUM = Spectral(exponent=2.0, corner=4.0, color=0.3)
_AMPLITUDE = 0.1
"""Fitted to the medical images on which ``benchmarks`` tunes; no reported result uses them."""


@dataclass(frozen=True, eq=False)
class Expected:
    """A normal prior for values (D,): `mean` plus `into` applied to independent standard normal values.

    Attributes:
        mean: (D,).
        into: linear map, (V, D) to (V, D).
        onto: its transpose.
    """

    mean: Tensor
    into: Callable[[Tensor], Tensor]
    onto: Callable[[Tensor], Tensor]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw values (count, D)."""
        numbers = torch.randn(count, len(self.mean), dtype=self.mean.dtype, generator=generator)
        return self.mean + self.into(numbers.to(self.mean.device))


def expected_values(mean: Tensor, spread: Tensor) -> Expected:
    """Return a prior for independent values with the given means and standard deviations (D,)."""
    return Expected(mean, lambda c: c * spread, lambda x: x * spread)


def expected_images(shape: tuple[int, ...], device: torch.device) -> Expected:
    """Return a prior for flat images (C, H, W): gray on average, with amplitude (1 + f / 4) ** -2 at frequency f."""
    axes, pixels = len(shape), torch.Size(shape).numel()
    unit = _AMPLITUDE * pixels**0.5

    def into(c: Tensor) -> Tensor:
        return unit * _SPECTRUM.images(c.view(-1, *shape), axes).flatten(1)

    def onto(x: Tensor) -> Tensor:
        return unit * _SPECTRUM.transposed(x.view(-1, *shape), axes).flatten(1)

    return Expected(torch.full((pixels,), 0.5, dtype=torch.float64, device=device), into, onto)
