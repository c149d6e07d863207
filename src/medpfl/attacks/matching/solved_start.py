"""The analytic solution as a search's initial image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medpfl.attacks.inversion.recursion import invert
from medpfl.attacks.matching.starts import Normal, Start, Suited
from medpfl.core.errors import InputError, check_positive
from medpfl.core.types import Observation

__all__ = ["Analytic", "Solved"]

_GRAY, _APART = 0.5, 0.02


@dataclass(frozen=True, repr=False)
class Analytic(Start):
    """The images found by `medpfl.attacks.RGAP`; where it does not apply, those of `Suited`.

    Restarts use normal pixels.

    Attributes:
        steps, tolerance: settings of RGAP's least squares.
    """

    steps: int = 1000
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, tolerance=self.tolerance)

    def of(self, seen: Observation, generator: torch.Generator) -> Start:
        """Return a `Solved` start, or that of `Suited` if the model or the plan allows no solution."""
        try:
            found = invert(seen, generator, self.steps, self.tolerance).images
        except InputError:
            return Suited().of(seen, generator)
        return Solved(found.cpu().float().clamp(0, 1))

    def again(self) -> Start:
        """Return `Normal`."""
        return Normal()

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return normal images: without an observation nothing can be solved."""
        return Normal()(shape, generator)


@dataclass(frozen=True, eq=False, repr=False)
class Solved(Start):
    """Images (V, N, C, H, W) found in advance; gray, which is not rough either, for victims without finite images.

    If all images of a batch are equal, faint noise tells them apart: without it, a search would move images of one
    label alike.
    """

    found: Tensor
    rough: ClassVar[bool] = False

    def images(self, shape: tuple[int, ...], victims: Tensor, own: list[torch.Generator]) -> Tensor:
        """Return the images found."""
        found = self.found[victims.cpu()]
        good = found.flatten(1).isfinite().all(1).view(-1, *[1] * (found.ndim - 1))
        found = torch.where(good, found, _GRAY)
        return torch.stack([_apart(batch, own[v]) for batch, v in zip(found, victims.tolist(), strict=True)])

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return normal images."""
        return Normal()(shape, generator)


def _apart(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (N, C, H, W), with noise if there are several and all are equal."""
    if len(batch) == 1 or not (batch == batch[:1]).all():
        return batch
    return batch + _APART * torch.randn(batch.shape, generator=generator).to(batch)
