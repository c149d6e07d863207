"""Constraints on guesses, enforced after every step of an optimizer that projects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medpfl.core.errors import InputError
from medpfl.core.spec import Part

__all__ = ["Box", "Constraint", "Free"]


@dataclass(frozen=True, repr=False)
class Constraint(Part):
    """A map from images (A, N, C, H, W) to the nearest allowed ones."""

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Return the allowed images after step number `step`, counted from 1."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Free(Constraint):
    """No constraint."""

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Return the images unchanged."""
        return images


@dataclass(frozen=True, repr=False)
class Box(Constraint):
    """Pixels in [0, 1] and, at regular intervals, a 3 x 3 median filter (Geiping et al. 2020).

    Attributes:
        median_every: steps between two filters; 0: no filter.

    Raises:
        InputError: At the call, if a filter is set and the images are volumes.
    """

    median_every: int = 0

    def __post_init__(self) -> None:
        if self.median_every < 0:
            raise InputError(f"median_every is {self.median_every}: it must be at least 0")

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Return the images clamped, and filtered if a filter is due."""
        if self.median_every and images.ndim != 5:
            raise InputError("the median filter needs 2D images: set median_every=0 for volumes")
        if self.median_every and step % self.median_every == 0:
            images = _median(images.flatten(0, 2)).view_as(images)
        return images.clamp(0, 1)


def _median(planes: Tensor) -> Tensor:
    """Return the 3 x 3 median of planes (M, H, W), mirrored at the border."""
    padded = functional.pad(planes, (1, 1, 1, 1), mode="reflect")
    windows = padded.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)
    return torch.median(windows, dim=3).values
