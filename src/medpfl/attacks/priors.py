"""What images look like before anything is seen: a term added to the objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.spec import Part

__all__ = ["NoPrior", "Prior", "Smoothness", "TotalVariation", "WarmUp"]


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


@dataclass(frozen=True, repr=False)
class WarmUp(Part):
    """Stages before the attack proper, each with a `Smoothness` prior that is weaker than the last.

    What an update says least about an image are its fine details. A rough start leaves them in the guess until
    the very end; a smooth prior that is switched off as the fit improves takes them out first.

    Attributes:
        weights: of the prior, stage by stage, against an objective that is 1 for an empty update.
        steps: of each stage.
    """

    weights: tuple[float, ...] = (30.0, 1.0)
    steps: tuple[int, ...] = (40, 60)

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.steps):
            raise InputError("a warm-up needs as many weights as steps")

    def stages(self) -> list[tuple[Smoothness, int]]:
        """Priors and steps."""
        return [(Smoothness(w), s) for w, s in zip(self.weights, self.steps, strict=True)]
