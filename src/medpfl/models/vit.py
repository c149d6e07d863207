"""Torchvision's vision transformer for images and patches of any size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from medpfl.core.errors import InputError
from medpfl.core.roles import Model
from medpfl.core.spec import shown
from medpfl.models.parts import Normalized, check_counts, check_rate, planar

__all__ = ["ViT"]

_SPREAD = 0.02


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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokens = 1 + (height // self.patch) * (width // self.patch)
            return _ViT(self, tokens, self.classes or num_classes, self.channels or channels)


class _ViT(Normalized, VisionTransformer):
    def __init__(self, like: ViT, tokens: int, classes: int, channels: int) -> None:
        mlp = like.mlp or 4 * like.width
        # Built for an image of one patch; the position embedding is replaced below.
        super().__init__(
            like.patch, like.patch, like.depth, like.heads, like.width, mlp, dropout=like.dropout, num_classes=classes
        )
        if channels != 3:
            self.conv_proj = nn.Conv2d(channels, like.width, like.patch, like.patch)
            nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (channels * like.patch**2)))
            nn.init.zeros_(self.conv_proj.bias)  # type: ignore[arg-type]  (it has one)
        self.encoder.pos_embedding = nn.Parameter(torch.empty(1, tokens, like.width).normal_(std=_SPREAD))
        nn.init.trunc_normal_(self.get_parameter("heads.head.weight"), std=_SPREAD)
        self.set_normalization(channels)

    def _process_input(self, x: Tensor) -> Tensor:
        """Return the embedded patches (N, patches, width); torchvision's own version takes only square images."""
        return self.conv_proj(x).flatten(2).transpose(1, 2)
