"""A U-Net for segmentation of images and volumes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.roles import Model
from medpfl.core.spec import shown
from medpfl.models.convnet import NORMS, norm_layer
from medpfl.models.parts import ACTIVATIONS, check_choice, check_counts

__all__ = ["UNet"]

_CONVOLUTIONS = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}


@dataclass(frozen=True, repr=False)
class UNet(Model):
    """U-Net: encoder and decoder with skip connections (Ronneberger et al. 2015, arXiv:1505.04597).

    Takes images (C, H, W) or volumes (C, D, H, W) and predicts one class per pixel. PyTorch's default initialization
    is used. Deviates: convolutions are padded, so the mask has the image's size; strided convolutions replace pooling;
    each level has one convolution.

    Attributes:
        width: channels in the first level; each level below has twice as many.
        depth: number of levels below the first; each halves the sides, which must be multiples of ``2**depth``.
        norm, activation: as in `ConvNet`.
        classes, channels: number of classes and of channels; ``None`` takes the data's.
    """

    width: int = shown(8)
    depth: int = shown(2)
    norm: Literal["none", "batch", "group", "instance"] = "instance"
    activation: str = "leaky_relu"
    classes: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        check_counts(width=self.width, depth=self.depth)
        check_choice("norm", self.norm, NORMS)
        check_choice("activation", self.activation, ACTIVATIONS)

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Build the network: images (N, C, H, W) or (N, C, D, H, W) to logits (N, K, H, W) or (N, K, D, H, W).

        Raises:
            InputError: if a side is not a multiple of ``2**depth``.
        """
        inputs, *sides = image_shape
        unit = 2**self.depth
        if any(side % unit for side in sides):
            raise InputError(
                f"UNet halves images {self.depth} times: the sides of {tuple(sides)} must be divisible by "
                f"{unit if self.depth < 32 else f'2^{self.depth}'}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _Network(self, len(sides), self.channels or inputs, self.classes or num_classes)


class _Network(nn.Module):
    def __init__(self, like: UNet, axes: int, inputs: int, classes: int) -> None:
        super().__init__()
        convolution, transposed = _CONVOLUTIONS[axes]
        widths = [like.width * 2**level for level in range(like.depth + 1)]

        def block(before: int, after: int, stride: int = 1) -> nn.Module:
            layers = [convolution(before, after, 3, stride, 1), *norm_layer(like.norm, axes, after)]
            return nn.Sequential(*layers, ACTIVATIONS[like.activation]())

        self.first = block(inputs, widths[0])
        self.down = nn.ModuleList(block(a, b, 2) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(transposed(b, a, 2, 2) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.join = nn.ModuleList(block(2 * a, a) for a in widths[-2::-1])
        self.last = convolution(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return every pixel's logits."""
        levels = [self.first(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), levels.pop()], 1))
        return self.last(x)
