"""Shared code of the models: normalization as a layer, activations, and checks of arguments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError, nearest
from medpfl.core.experiments.limits import LAYERS, PARAMETERS

__all__ = ["ACTIVATIONS", "MOMENTS", "Normalized", "check_choice", "check_counts", "check_rate", "planar"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}

MOMENTS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and deviation for red, green and blue, by name. Gray images use their averages, rounded to three digits."""


class Normalized(nn.Module):
    """A mix-in that normalizes images in [0, 1] before they enter its sister class.

    It subtracts a mean and divides by a deviation, by default ImageNet's. Gray images enter a network with three
    channels as three equal channels.
    """

    mean: Tensor
    deviation: Tensor

    def set_normalization(self, channels: int, moments: str = "imagenet") -> None:
        """Register mean and deviation as buffers that no weights file holds; gray ones unless `channels` is 3."""
        mean, deviation = MOMENTS[moments] if channels == 3 else ((round(sum(m) / 3, 3),) for m in MOMENTS[moments])
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sister class's outputs for the normalized images."""
        if x.shape[-3] == 1 and len(self.mean) == 3:
            x = x.expand(*x.shape[:-3], 3, *x.shape[-2:])
        return super().forward((x - self.mean) / self.deviation)  # type: ignore[misc]  (a mix-in: the sister has it)


def planar(image_shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """Return (C, H, W), or raise `InputError` for volumes."""
    if len(image_shape) != 3:
        raise InputError(
            f"{name} takes images (C, H, W), these are volumes {tuple(image_shape)}: use ConvNet, MLP or your own "
            "model, or use slices"
        )
    channels, height, width = image_shape
    return channels, height, width


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise `InputError` if a value is not among those known."""
    if value not in (known := list(known)):
        raise InputError(f"there is no {name} {value!r}; {nearest(str(value), known)}")


def check_counts(**values: Any) -> None:
    """Raise `InputError` unless each value is a whole number, at least 1 and not absurdly large.

    A width is at most `PARAMETERS`, and a ``depth`` at most `LAYERS`.
    """
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise InputError(f"{name} is {value!r}: it must be a whole number, at least 1")
        if value > (most := LAYERS if name == "depth" else PARAMETERS):
            raise InputError(f"{name} is {value!r:.40}: the most is {most:,}")


def check_rate(dropout: float) -> None:
    """Raise `InputError` if a dropout rate is not in [0, 1)."""
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout!r}: it must be at least 0 and below 1")
