"""Initial images (N, C, H, W) for a search, drawn from a generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medpfl.core.errors import check_positive
from medpfl.core.spec import Part
from medpfl.core.types import Observation

__all__ = ["Normal", "Patterned", "Start", "Suited"]


@dataclass(frozen=True, repr=False)
class Start(Part):
    """A rule that draws the initial images."""

    rough: ClassVar[bool] = True
    """True if the images' fine details are pure noise, which a warm-up removes."""

    def of(self, seen: Observation, generator: torch.Generator) -> Start:
        """Return the start for an observation: itself, unless it depends on the observation."""
        return self

    def again(self) -> Start:
        """Return the start for restarts."""
        return self

    def images(self, shape: tuple[int, ...], victims: Tensor, own: list[torch.Generator]) -> Tensor:
        """Return images (A, N, C, H, W) on the CPU for victims (A,), each from its own generator."""
        return torch.stack([self(shape, own[v]) for v in victims.tolist()])

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return images with shape (N, C, H, W), on the CPU."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Normal(Start):
    """Independent normal pixels. DLG and iDLG use mean 0 and standard deviation 1."""

    mean: float = 0.0
    deviation: float = 1.0

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return normal images."""
        return self.mean + self.deviation * torch.randn(shape, generator=generator)


@dataclass(frozen=True, repr=False)
class Suited(Start):
    """`Normal()` for one gradient, and nearly gray images where an update has several local steps.

    Images that are pure noise make a network sure of some label. Where it is sure of the right one, a step has hardly
    any gradient, and the later steps begin at wrong weights: such a search does not leave its start.

    Attributes:
        deviation: standard deviation of the pixels of gray images, around 0.5.
    """

    deviation: float = 0.1

    def of(self, seen: Observation, generator: torch.Generator) -> Start:
        """Return the start for an observation."""
        several = any(plan.steps > 1 for view in seen.views for plan in view.plans)
        return Normal(0.5, self.deviation) if several else Normal()

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return images for one gradient."""
        return Normal()(shape, generator)


@dataclass(frozen=True, repr=False)
class Patterned(Start):
    """One random tile of uniform pixels, repeated over the image (Wei et al. 2020, arXiv:2004.10397, 4.2).

    Attributes:
        tile: tile edge in pixels.
    """

    tile: int = 16

    def __post_init__(self) -> None:
        check_positive(tile=self.tile)

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return patterned images."""
        *front, height, width = shape
        tile = torch.rand((*front, min(self.tile, height), min(self.tile, width)), generator=generator)
        repeats = (-(-height // tile.shape[-2]), -(-width // tile.shape[-1]))
        return tile.repeat(*[1] * len(front), *repeats)[..., :height, :width]
