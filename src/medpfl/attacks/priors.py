"""What images look like before anything is seen: a term added to the objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.spec import Part

__all__ = ["NoPrior", "Prior", "TotalVariation"]


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
class TotalVariation(Prior):
    """Mean absolute difference of neighboring pixels along each axis, summed over axes (Rudin et al. 1992).

    Attributes:
        weight: of the term, at least 0.
    """

    weight: float = 1e-2

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(f"weight is {self.weight}: it must be at least 0")

    def __call__(self, images: Tensor) -> Tensor:
        """The weighted total variation over all axes after the channel's."""
        steps = [images.diff(dim=axis).abs().mean() for axis in range(2, images.ndim)]
        return self.weight * sum(steps, images.new_zeros(()))
