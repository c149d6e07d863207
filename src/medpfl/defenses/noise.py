"""Shared code of additive noise on the update."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from medpfl.core.errors import InputError, check_positive
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Tensors, Update

__all__ = ["AdditiveNoise"]


@dataclass(frozen=True, repr=False)
class AdditiveNoise(Defense):
    """Independent zero-mean noise on every coordinate of the update.

    Anything sent besides the update (batch-norm statistics, the number of samples) is not changed.

    Attributes:
        scale: the noise scale, above 0.
        relative: unit of `scale`. ``None``: the update's own unit; ``"norm"``: the root mean square of all coordinates
            in the update (its norm divided by the root of its size); ``"layer"``: the root mean square of each tensor.
        where: ``"client"``, or ``"server"`` if the server adds the noise after it has seen the update, which gives no
            protection from the server.

    Raises:
        InputError: if `scale` is not a number above 0, or `relative` or `where` is unknown.
    """

    laplace: ClassVar[bool] = False
    """True for Laplace noise. Attacks may use it."""

    scale: float = shown(0.01)
    relative: Literal["norm", "layer"] | None = None
    where: Literal["client", "server"] = field(default="client", kw_only=True)  # type: ignore[misc]  (the role lets a part compute it)

    def __post_init__(self) -> None:
        check_positive(scale=self.scale)
        if self.relative not in (None, "norm", "layer"):
            raise InputError(f"relative is '{self.relative}': choose None, 'norm' or 'layer'")
        if self.where not in ("client", "server"):
            raise InputError(f"where is '{self.where}': choose 'client' or 'server'")

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Draw noise with scale 1 and the shape of `like`."""
        raise NotImplementedError

    def variance(self) -> float:
        """Return the variance of noise with scale 1."""
        raise NotImplementedError

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Add noise to the update."""
        scales = self._scales(value.tensors)
        noisy = {name: t + scales[name] * self.draw(t, generator).to(t) for name, t in value.tensors.items()}
        return value.replace(noisy), state

    def settled(self, first: bool) -> bool:
        """Return True unless a client's scale is relative to its update."""
        return not self.relative or self.where == "server"

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the noise's precision.

        A relative scale is computed from the sent update's norm, reduced by the expected share of the noise.
        """
        known = before or Channel()
        if self.where == "server":
            return known
        scales = self._scales(sent.tensors)
        if self.relative:
            shrink = (1 + self.scale**2 * self.variance()) ** -0.5
            scales = {name: scale * shrink for name, scale in scales.items()}
        precision = {
            name: torch.full_like(t, 1 / max(float(scales[name]) ** 2 * self.variance(), 1e-30))
            for name, t in sent.tensors.items()
        }
        return known.then(precision=precision, laplace=self.laplace)

    def _scales(self, tensors: Tensors) -> dict[str, float]:
        if self.relative is None:
            return dict.fromkeys(tensors, self.scale)
        if self.relative == "layer":
            return {name: self.scale * float(t.double().square().mean().sqrt()) for name, t in tensors.items()}
        squares = sum(t.double().square().sum().item() for t in tensors.values())
        size = sum(t.numel() for t in tensors.values())
        return dict.fromkeys(tensors, self.scale * math.sqrt(squares / size))
