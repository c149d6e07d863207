"""Torchvision's residual networks, with the normalization of the images as their first layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as _TorchvisionResNet

from medpfl.core.errors import InputError
from medpfl.core.roles import Model
from medpfl.core.spec import shown

__all__ = ["ResNet"]

_DEPTHS: dict[int, tuple[Any, list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GRAY = ((0.449,), (0.226,))


@dataclass(frozen=True, repr=False)
class ResNet(Model):
    """Residual network of 18, 34 or 50 layers (He et al. 2016, arXiv:1512.03385), as in torchvision.

    Takes images in [0, 1]; ImageNet's mean and deviation are subtracted and divided inside. Parameter names
    are torchvision's, so that its weight files fit (with ``classes=1000`` and three channels).

    Attributes:
        depth: 18, 34 or 50.
        classes, channels: ``None`` takes what the data has.
    """

    depth: int = shown(18)
    classes: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.depth not in _DEPTHS:
            raise InputError(f"depth is {self.depth}: choose from {', '.join(map(str, _DEPTHS))}")

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """The untrained network for images (C, H, W); torchvision's own initialization under `seed`."""
        block, layers = _DEPTHS[self.depth]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _Normalized(block, layers, self.classes or num_classes, self.channels or image_shape[0])


class _Normalized(_TorchvisionResNet):
    mean: Tensor
    deviation: Tensor

    def __init__(self, block: Any, layers: list[int], classes: int, channels: int) -> None:
        super().__init__(block, layers, num_classes=classes)
        if channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        mean, deviation = _IMAGENET if channels == 3 else _GRAY
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) / self.deviation)
