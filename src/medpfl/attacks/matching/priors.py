"""Priors: terms in the objective that favor plausible images."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.spec import Part

__all__ = ["ColorVariation", "NoPrior", "Prior", "Smoothness", "TotalVariation"]


@dataclass(frozen=True, repr=False)
class Prior(Part):
    """A penalty on images (N, C, H, W): a differentiable scalar that works under ``vmap``."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the penalty."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class NoPrior(Prior):
    """No preference: every image is equally likely."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return 0."""
        return images.new_zeros(())


@dataclass(frozen=True, repr=False)
class Differences(Prior):
    """The mean over differences of neighboring pixels along each axis, summed over axes.

    Attributes:
        weight: the term's weight, at least 0.
        spacing: distance between neighbors along the axes after the channel, (D, H, W) for volumes, in any unit.
            Differences are taken per length, with the smallest spacing as the unit. ``None``: the same along all axes.
    """

    weight: float = 1.0
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(f"weight is {self.weight}: it must be at least 0")
        if self.spacing is not None:
            object.__setattr__(self, "spacing", tuple(self.spacing))
            if not self.spacing or not all(isinstance(s, int | float) and 0 < s < inf for s in self.spacing):
                raise InputError(f"spacing is {self.spacing}: it must hold a number above 0 for each axis")

    def size(self, steps: Tensor) -> Tensor:
        """Return each difference's cost."""
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Tensor:
        """Return the weighted sum over all axes after the channel.

        Raises:
            InputError: The number of spacings is not the number of axes.
        """
        spacing = self.spacing or (1.0,) * (images.ndim - 2)
        if len(spacing) != images.ndim - 2:
            raise InputError(
                f"spacing is {spacing}, and the images have {images.ndim - 2} axes: give one number for each"
            )
        sizes = [
            self.size(images.diff(dim=axis) * (min(spacing) / step)).mean()
            for axis, step in enumerate(spacing, 2)
            if images.shape[axis] > 1  # the mean over no neighbors is NaN
        ]
        return self.weight * sum(sizes, images.new_zeros(()))


@dataclass(frozen=True, repr=False)
class TotalVariation(Differences):
    """The mean absolute difference of neighbors (Rudin et al. 1992)."""

    weight: float = 1e-2

    def size(self, steps: Tensor) -> Tensor:
        """Return the absolute differences."""
        return steps.abs()


@dataclass(frozen=True, repr=False)
class Smoothness(Differences):
    """The mean squared difference of neighbors."""

    def size(self, steps: Tensor) -> Tensor:
        """Return the squared differences."""
        return steps.square()


@dataclass(frozen=True, repr=False)
class ColorVariation(Prior):
    """Total variation of all channels together: ``sum over pixels |gradient of all channels|``.

    The channels of a color image have their edges at the same positions (Blomgren and Chan 1998; in the form from
    Bresson and Chan 2008, equation 8). The norm is smooth below `soft`, so that second-order methods can use it.

    Attributes:
        weight: the sum's weight, at least 0.
        soft: norm below which a gradient counts as noise and not as an edge, in units of [0, 1].
    """

    weight: float = 1.0
    soft: float = 0.01

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and self.soft > 0):
            raise InputError("weight must be at least 0, soft above 0")

    def __call__(self, images: Tensor) -> Tensor:
        """Return the weighted sum over pixels. At the far edges, gradients lack the component beyond the image."""
        square = sum((_forward(images, axis).square() for axis in range(2, images.ndim)), torch.zeros_like(images))
        return self.weight * ((square.sum(1) + self.soft**2).sqrt() - self.soft).sum()


def _forward(images: Tensor, axis: int) -> Tensor:
    """Return the differences to the next pixel along an axis, 0 at its end."""
    last = images.narrow(axis, images.shape[axis] - 1, 1)
    return torch.cat([images, last], axis).diff(dim=axis)
