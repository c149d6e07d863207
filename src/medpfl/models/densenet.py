"""Torchvision's DenseNet121, with image normalization as its first layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.roles import Model
from medpfl.models.parts import planar

__all__ = ["DenseNet121"]

_SMALLEST = 32


@dataclass(frozen=True, repr=False)
class DenseNet121(Model):
    """Densely connected network with 121 layers (Huang et al. 2017, arXiv:1608.06993), as in torchvision.

    Takes images in [0, 1] with sides of at least 32 pixels. The network itself normalizes them with ImageNet's mean
    and deviation. Parameter names are torchvision's.

    Attributes:
        classes, channels: number of classes and of channels; ``None`` takes the data's.
    """

    classes: int | None = None
    channels: int | None = None

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Build the untrained network for images (C, H, W), with torchvision's own initialization under `seed`.

        Raises:
            InputError: if the images are volumes, or have sides below 32 pixels.
        """
        channels, *sides = planar(image_shape, "DenseNet121")
        if min(sides) < _SMALLEST:
            raise InputError(f"DenseNet121 halves images five times: sides {sides} must be {_SMALLEST} pixels or more")
        from medpfl.models.torchvision_networks import DenseNetwork

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DenseNetwork(self.classes or num_classes, self.channels or channels)
