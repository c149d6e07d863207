"""Torchvision's networks with image normalization as their first layer.

A model's `build` imports this file: torchvision takes as long to import as torch, and most runs need none of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models as theirs
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from medpfl.models.parts import Normalized

__all__ = ["Blocks", "DenseNetwork", "ResidualNetwork", "TransformerNetwork", "published_weights"]

_SPREAD = 0.02

_RESNETS: dict[int, tuple[Any, list[int], Any]] = {
    18: (BasicBlock, [2, 2, 2, 2], theirs.ResNet18_Weights),
    34: (BasicBlock, [3, 4, 6, 3], theirs.ResNet34_Weights),
    50: (Bottleneck, [3, 4, 6, 3], theirs.ResNet50_Weights),
}


def published_weights(depth: int) -> Mapping[str, Any]:
    """Return torchvision's published weights of the ResNet with `depth` layers, by name."""
    return _RESNETS[depth][2].__members__


class ResidualNetwork(Normalized, ResNet):
    """ResNet with 18, 34 or 50 layers, for any number of channels."""

    def __init__(self, depth: int, classes: int, channels: int) -> None:
        block, layers, _ = _RESNETS[depth]
        super().__init__(block, layers, num_classes=classes)
        if channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")


class DenseNetwork(Normalized, DenseNet):
    """DenseNet121, for any number of channels."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(32, (6, 12, 24, 16), 64, num_classes=classes)
        if channels != 3:
            self.features.conv0 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(self.features.conv0.weight)
        self.set_normalization(channels)


class Blocks(NamedTuple):
    """The blocks of a vision transformer: their number, and each one's width, heads, hidden units and dropout."""

    depth: int
    width: int
    heads: int
    mlp: int
    dropout: float


class TransformerNetwork(Normalized, VisionTransformer):
    """Vision transformer for images of any sides, with a random last layer."""

    def __init__(self, blocks: Blocks, *, patch: int, tokens: int, classes: int, channels: int) -> None:
        depth, width, heads, mlp, dropout = blocks
        # Built for an image of one patch; the position embedding is replaced below.
        super().__init__(patch, patch, depth, heads, width, mlp, dropout=dropout, num_classes=classes)
        if channels != 3:
            self.conv_proj = nn.Conv2d(channels, width, patch, patch)
            nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (channels * patch**2)))
            nn.init.zeros_(self.conv_proj.bias)  # type: ignore[arg-type]  (it has one)
        self.encoder.pos_embedding = nn.Parameter(torch.empty(1, tokens, width).normal_(std=_SPREAD))
        nn.init.trunc_normal_(self.get_parameter("heads.head.weight"), std=_SPREAD)
        self.set_normalization(channels)

    def _process_input(self, x: Tensor) -> Tensor:
        """Return the embedded patches (N, patches, width); torchvision's own version takes only square images."""
        return self.conv_proj(x).flatten(2).transpose(1, 2)
