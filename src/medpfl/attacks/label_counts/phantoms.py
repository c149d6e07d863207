"""Made-up images with the coarse statistics of medical images.

An attacker without any images wants to know what a model usually predicts. White noise is far from what a scanner
makes, and so are predictions on it. A phantom has a spectrum that falls with frequency, its own brightness and
contrast, and sometimes a dark background. Phantoms come in families, because a client's images usually are of one kind.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["phantoms"]

_DARK, _TINTED = 0.4, 0.5
"""Shares of the families with a dark background, and of those with a tint (if images have several channels)."""


def phantoms(shape: tuple[int, ...], families: int, each: int, generator: torch.Generator) -> Tensor:
    """Return images (families, each, C, H, W), or (families, each, C, D, H, W), in [0, 1]."""
    return torch.stack([_family(shape, each, generator) for _ in range(families)])


def _family(shape: tuple[int, ...], each: int, generator: torch.Generator) -> Tensor:
    """Return `each` images of one brightness, contrast, spectrum and tint, alike in a part of their structure."""
    channels, *sides = shape
    draw = torch.rand(6, generator=generator).tolist()
    slope, mean, contrast, shared = 1 + 1.5 * draw[0], 0.15 + 0.6 * draw[1], 0.08 + 0.2 * draw[2], 0.3 + 0.5 * draw[3]
    common, own = (_field(count, sides, slope, generator) for count in (1, each))
    one = [1] * len(sides)
    images = mean + contrast * (math.sqrt(shared) * common + math.sqrt(1 - shared) * own)
    images = images + 0.1 * torch.randn(each, *one, generator=generator)
    if draw[4] < _DARK:
        reach = 0.6 + 0.4 * torch.rand(each, *one, generator=generator)
        images = images * torch.sigmoid(12 * (reach - _radius(sides)))
    images = images[:, None].expand(-1, channels, *sides)
    if channels > 1 and draw[5] < _TINTED:
        images = images * (1 + 0.25 * torch.randn(1, channels, *one, generator=generator))
        images = images + 0.02 * torch.randn(each, channels, *one, generator=generator)
    return images.clamp(0, 1)


def _field(count: int, sides: list[int], slope: float, generator: torch.Generator) -> Tensor:
    """Return normal fields (count, *sides) with mean 0, deviation 1, and amplitudes that fall as frequency^-slope."""
    axes = tuple(range(1, len(sides) + 1))
    steps = [torch.fft.fftfreq(side) * side for side in sides[:-1]] + [torch.fft.rfftfreq(sides[-1]) * sides[-1]]
    frequency = torch.stack(torch.meshgrid(*steps, indexing="ij")).square().sum(0).sqrt()
    spectrum = torch.fft.rfftn(torch.randn(count, *sides, generator=generator), dim=axes) * (1 + frequency) ** -slope
    fields = torch.fft.irfftn(spectrum, s=tuple(sides), dim=axes)
    fields = fields - fields.mean(axes, keepdim=True)
    return fields / fields.square().mean(axes, keepdim=True).sqrt().clamp(min=1e-6)


def _radius(sides: list[int]) -> Tensor:
    """Return each pixel's distance from the center, 1 at the middle of an edge."""
    grids = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in sides), indexing="ij")
    return torch.stack(grids).square().sum(0).sqrt()
