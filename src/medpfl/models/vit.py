"""Torchvision's vision transformer for images and patches of any size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.roles import Model
from medpfl.core.spec import shown
from medpfl.models.parts import check_counts, check_rate, planar

__all__ = ["ViT"]


@dataclass(frozen=True, repr=False)
class ViT(Model):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), as in torchvision, with half ViT-Ti's depth.

    Takes images in [0, 1]. The network itself normalizes them with ImageNet's mean and deviation. Deviates from
    torchvision: the last layer starts with random weights (deviation 0.02) instead of zeros, which would let no
    gradient reach the image; images need not be square.

    Attributes:
        patch: side of a patch in pixels; the image's sides must be multiples of it.
        depth: number of layers.
        width: token width, a multiple of `heads`.
        heads: number of attention heads.
        mlp: width inside a layer; ``None``: four times `width`.
        dropout: dropout rate after the embedding, the attention and the linear layers (none inside the attention).
        classes, channels: number of classes and of channels; ``None`` takes the data's.
    """

    patch: int = shown(8)
    depth: int = 6
    width: int = 192
    heads: int = 3
    mlp: int | None = None
    dropout: float = 0.0
    classes: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        check_counts(patch=self.patch, depth=self.depth, width=self.width, heads=self.heads, mlp=self.mlp or 1)
        check_rate(self.dropout)
        if self.width % self.heads:
            raise InputError(f"width is {self.width}: it must be a multiple of heads, {self.heads}")

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Build the untrained network for images (C, H, W).

        Raises:
            InputError: if the images are volumes, or their sides are not multiples of the patch.
        """
        channels, height, width = planar(image_shape, "ViT")
        if height % self.patch or width % self.patch:
            raise InputError(f"images of {height} x {width} cannot be cut into patches of {self.patch}: choose another")
        from medpfl.models.torchvision_networks import Blocks, TransformerNetwork

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return TransformerNetwork(
                Blocks(self.depth, self.width, self.heads, self.mlp or 4 * self.width, self.dropout),
                patch=self.patch,
                tokens=1 + (height // self.patch) * (width // self.patch),
                classes=self.classes or num_classes,
                channels=self.channels or channels,
            )
