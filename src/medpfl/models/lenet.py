"""LeNets from the gradient-inversion papers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from medpfl.core.errors import InputError, nearest
from medpfl.core.roles import Model
from medpfl.core.spec import shown
from medpfl.models.parts import ACTIVATIONS, check_choice, planar

__all__ = ["LeNet"]

# (kernel, output channels, padding, strides)
_VARIANTS = {
    "dlg": (5, 12, 2, (2, 2, 1, 1)),
    "idlg": (5, 12, 2, (2, 2, 1)),
    "cpl": (2, 16, 2, (1, 1, 1, 1, 1, 1)),
}


@dataclass(frozen=True, repr=False)
class LeNet(Model):
    """Convolutions with sigmoids, and one linear layer; all weights and biases are uniform in [-0.5, 0.5].

    There are three variants, as in the code that Das, Amini and Wu (arXiv:2409.18907) used for each attack. ``'dlg'``
    has four 5x5 convolutions with 12 channels and strides 2, 2, 1, 1 (Zhu et al. 2019, arXiv:1906.08935). ``'idlg'``
    has three, with strides 2, 2, 1 (Zhao et al. 2020, arXiv:2001.02610). ``'cpl'`` has six 2x2 convolutions with 16
    channels and padding 2 (Wei et al. 2020, arXiv:2004.10397).

    With their sigmoids and wide weights they leak, but hardly train: the first layers' gradient almost vanishes.
    ``LeNet('idlg', activation='tanh', scale=0.1)`` leaks and trains.

    Attributes:
        variant: one of the three variants.
        classes, channels: number of classes and of channels; ``None`` takes the data's.
        scale: half the width of the weights' uniform distribution.
        activation: ``"sigmoid"`` as in the papers, or another activation listed for `ConvNet`.
    """

    variant: Literal["dlg", "idlg", "cpl"] = shown("dlg")
    classes: int | None = None
    channels: int | None = None
    scale: float = 0.5
    activation: str = "sigmoid"

    def __post_init__(self) -> None:
        if self.variant not in _VARIANTS:
            raise InputError(f"there is no variant '{self.variant}'; {nearest(str(self.variant), _VARIANTS)}")
        check_choice("activation", self.activation, ACTIVATIONS)

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Build the network for images (C, H, W)."""
        kernel, width, padding, strides = _VARIANTS[self.variant]
        inputs, *size = planar(image_shape, "LeNet")
        channels = [self.channels or inputs] + [width] * len(strides)
        features = _features(strides, kernel, padding, size) * width
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):  # the layers' own initialization is overwritten
            for (inputs, outputs), stride in zip(itertools.pairwise(channels), strides, strict=True):
                layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), ACTIVATIONS[self.activation]()]
            network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, self.classes or num_classes))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.uniform_(-self.scale, self.scale, generator=generator)
        return network


def _features(strides: tuple[int, ...], kernel: int, padding: int, size: list[int]) -> int:
    """Return the number of pixels in the last feature map."""
    height, width = size
    for stride in strides:
        height, width = ((edge + 2 * padding - kernel) // stride + 1 for edge in (height, width))
    return height * width
