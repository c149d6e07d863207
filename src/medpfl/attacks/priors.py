"""What images look like before anything is seen: a term added to the objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.spec import Part

__all__ = ["NoPrior", "Prior", "Smoothness", "TotalVariation"]


@dataclass(frozen=True, repr=False)
class Prior(Part):
    """A penalty on images (N, C, H, W): a scalar, differentiable, open to ``vmap``."""

    def __call__(self, images: Tensor) -> Tensor:
        """The penalty."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class NoPrior(Prior):
    """Every image is as likely as any other."""

    def __call__(self, images: Tensor) -> Tensor:
        """0."""
        return images.new_zeros(())


@dataclass(frozen=True, repr=False)
class Differences(Prior):
    """A mean over the differences of neighboring pixels along each axis, summed over axes.

    Attributes:
        weight: of the term, at least 0.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(f"weight is {self.weight}: it must be at least 0")

    def size(self, steps: Tensor) -> Tensor:
        """What a difference costs."""
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Tensor:
        """The weighted sum over all axes after the channel's."""
        sizes = [self.size(images.diff(dim=axis)).mean() for axis in range(2, images.ndim)]
        return self.weight * sum(sizes, images.new_zeros(()))


@dataclass(frozen=True, repr=False)
class TotalVariation(Differences):
    """The mean absolute difference of neighbors (Rudin et al. 1992)."""

    weight: float = 1e-2

    def size(self, steps: Tensor) -> Tensor:
        """Absolute."""
        return steps.abs()


@dataclass(frozen=True, repr=False)
class Smoothness(Differences):
    """The mean squared difference of neighbors."""

    def size(self, steps: Tensor) -> Tensor:
        """Squared."""
        return steps.square()
