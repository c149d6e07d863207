"""Torchvision's residual networks, with image normalization as their first layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.roles import Model
from medpfl.core.spec import shown
from medpfl.models.parts import MOMENTS, check_choice, planar
from medpfl.models.weights import fill, load_weights

__all__ = ["ResNet"]

_DEPTHS = (18, 34, 50)
_HEAD = "fc"


@dataclass(frozen=True, repr=False)
class ResNet(Model):
    """Residual network with 18, 34 or 50 layers (He et al. 2016, arXiv:1512.03385), as in torchvision.

    Takes images in [0, 1]. The network itself normalizes them with a mean and a deviation. Parameter names are
    torchvision's.

    Attributes:
        depth: 18, 34 or 50.
        weights: ``None`` for an untrained network; a published name, such as ``"IMAGENET1K_V1"``, which torchvision
            downloads and whose hash it checks; or the path to a weights file for torchvision's network. With weights,
            gray images enter as three equal channels, and the last layer is drawn anew if its number of classes
            differs from the file's (ImageNet's 1000). No output ever shows the path.
        classes, channels: number of classes and of channels; ``None`` takes the data's.
        normalization: ``"imagenet"``, ``"cifar10"`` or ``"none"``: source of mean and deviation.
    """

    depth: int = shown(18)
    weights: str | None = None
    classes: int | None = None
    channels: int | None = None
    normalization: str = "imagenet"

    def __post_init__(self) -> None:
        if self.depth not in _DEPTHS:
            raise InputError(f"depth is {self.depth}: choose from {', '.join(map(str, _DEPTHS))}")
        check_choice("normalization", self.normalization, MOMENTS)

    def __repr__(self) -> str:
        hidden = self.weights is not None and self.weights not in self._published()
        return Model.__repr__(replace(self, weights="a file") if hidden else self)

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Build the network for images (C, H, W); layers without given weights are initialized as in torchvision.

        Raises:
            InputError: if the images are volumes, if there are weights but the channels are neither 1 nor 3, or if the
                weights cannot be loaded or do not fit.
        """
        own, _, _ = planar(image_shape, "ResNet")
        channels = self.channels or own
        if self.weights is not None and channels not in (1, 3):
            raise InputError(f"ResNet with weights takes 1 or 3 channels, not {channels}: leave the weights out")
        from medpfl.models.torchvision_networks import ResidualNetwork

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = ResidualNetwork(self.depth, self.classes or num_classes, 3 if self.weights else channels)
        network.set_normalization(3 if self.weights else channels, self.normalization)
        if self.weights in self._published():
            fill(network, self._download(), f"torchvision's {self.weights}", _HEAD)
        elif self.weights is not None:
            load_weights(network, Path(self.weights).expanduser(), _HEAD)
        return network

    def _published(self) -> Mapping[str, Any]:
        from medpfl.models.torchvision_networks import published_weights

        return published_weights(self.depth)

    def _download(self) -> Mapping[str, Tensor]:
        try:
            return self._published()[str(self.weights)].get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"cannot download {self.weights} ({error}): get the file yourself and give its path as weights='...'"
            ) from error
