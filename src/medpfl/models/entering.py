"""A model whose images enter in another range than [0, 1], as the client's loader gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core.records.origin import Pixels
from medpfl.core.roles import Model
from medpfl.models.sized import built

__all__ = ["Entering", "entering", "leaving", "mapped"]


@dataclass(frozen=True, repr=False)
class Entering(Model):
    """A model that maps images from [0, 1] to the range of the client's loader first. No parameter is renamed.

    Attributes:
        model: the client's model.
        pixels: the mapping.
    """

    model: Model = field(repr=False)
    pixels: Pixels = field(repr=False)

    def __repr__(self) -> str:
        offset, scale = (",".join(f"{v:.6g}" for v in numbers) for numbers in (self.pixels.offset, self.pixels.scale))
        told = " (inferred from the images' values)" if self.pixels.inferred else ""
        return f"{self.model!r} on (x - {offset}) / {scale}{told}"

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Return the client's network with a hook that maps its input."""
        return mapped(built(self.model, image_shape, num_classes, seed), self.pixels)


@dataclass(frozen=True)
class _Map:
    """A forward pre-hook, since a wrapper would rename the parameters."""

    pixels: Pixels

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (entering(args[0], self.pixels), *args[1:])


def mapped(network: nn.Module, pixels: Pixels) -> nn.Module:
    """Return the same network, which from now on maps its input from [0, 1] first."""
    network.register_forward_pre_hook(_Map(pixels))
    return network


def entering(images: Tensor, pixels: Pixels) -> Tensor:
    """Return images (N, C, H, W) in [0, 1] as they enter the model."""
    return (images - _shaped(pixels.offset, images)) / _shaped(pixels.scale, images)


def leaving(images: Tensor, pixels: Pixels) -> Tensor:
    """Return images as they entered the model, mapped back to [0, 1]."""
    return images * _shaped(pixels.scale, images) + _shaped(pixels.offset, images)


def _shaped(numbers: tuple[float, ...], images: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=images.dtype, device=images.device).view(1, -1, *[1] * (images.ndim - 2))
