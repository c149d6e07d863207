"""A plain convolutional network for images and volumes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.roles import Model
from medpfl.core.spec import shown
from medpfl.models.parts import ACTIVATIONS, check_choice, check_counts, check_rate

__all__ = ["NORMS", "ConvNet", "norm_layer"]

NORMS = ("none", "batch", "group", "instance")
_GROUPS = 8
# By an image's number of axes: convolution, pooling, batch and instance norm.
_LAYERS: dict[int, tuple[Any, Any, Any, Any]] = {
    2: (nn.Conv2d, nn.AvgPool2d, nn.BatchNorm2d, nn.InstanceNorm2d),
    3: (nn.Conv3d, nn.AvgPool3d, nn.BatchNorm3d, nn.InstanceNorm3d),
}


@dataclass(frozen=True, repr=False)
class ConvNet(Model):
    """Blocks of 3 x 3 convolution, norm, activation and 2 x 2 average pooling, then one linear layer.

    For volumes (C, D, H, W), all layers are three-dimensional. PyTorch's default initialization is used.

    Attributes:
        width: channels in every block.
        depth: number of blocks; each halves the sides.
        norm: ``"none"``, ``"batch"``, ``"group"`` (up to 8 groups) or ``"instance"`` (with weights).
        activation: ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"gelu"``, ``"sigmoid"`` or ``"tanh"``.
        dropout: dropout rate before the linear layer.
        classes, channels: number of classes and of channels; ``None`` takes the data's.
    """

    width: int = shown(32)
    depth: int = shown(3)
    norm: Literal["none", "batch", "group", "instance"] = "none"
    activation: str = "relu"
    dropout: float = 0.0
    classes: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        check_counts(width=self.width, depth=self.depth)
        check_choice("norm", self.norm, NORMS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_rate(self.dropout)

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Build the network for images (C, H, W) or volumes (C, D, H, W).

        Raises:
            InputError: if a side is too short for `depth` blocks.
        """
        inputs, *sides = image_shape
        if min(sides) >> self.depth < 1:
            raise InputError(f"images of {tuple(sides)} are too small for {self.depth} blocks that halve them")
        features = self.width * math.prod(side >> self.depth for side in sides)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = [self.channels or inputs] + [self.width] * self.depth
            blocks = [self._block(len(sides), *pair) for pair in itertools.pairwise(widths)]
            last = nn.Linear(features, self.classes or num_classes)
        drop = [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(*blocks, nn.Flatten(), *drop, last)

    def _block(self, axes: int, inputs: int, outputs: int) -> nn.Module:
        conv, pool, _, _ = _LAYERS[axes]
        norm = norm_layer(self.norm, axes, outputs)
        return nn.Sequential(conv(inputs, outputs, 3, padding=1), *norm, ACTIVATIONS[self.activation](), pool(2))


def norm_layer(norm: str, axes: int, channels: int) -> list[nn.Module]:
    """Return the layer for a name in `NORMS` and images with `axes` axes, in a list; empty for ``"none"``."""
    _, _, batch_norm, instance_norm = _LAYERS[axes]
    norms = {
        "none": lambda: [],
        "batch": lambda: [batch_norm(channels)],
        "group": lambda: [nn.GroupNorm(math.gcd(_GROUPS, channels), channels)],
        "instance": lambda: [instance_norm(channels, affine=True)],
    }
    return norms[norm]()
