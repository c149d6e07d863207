"""Layers, walked backward: from what is known of a layer's outputs to what is known of its inputs.

All in float64, for V victims at once, with values flattened to (V, D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad

from medpfl.core.types import Tensors

__all__ = ["Activation", "Dense", "Estimate", "Layer", "Scaled", "Wire", "layer_input", "measured", "noise_of"]

_ROUNDING = 0.5
"""A float's error, in units of its type's epsilon."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """What is known of values that a network computed.

    Attributes:
        value: (V, D).
        weight: (V, D) 1 / deviation of its error; 0: nothing is known.
        pull: (V, D) the loss's derivative by it.
        blur: (V, D) deviation of the error of `pull`.
    """

    value: Tensor
    weight: Tensor
    pull: Tensor
    blur: Tensor


@dataclass(frozen=True, eq=False)
class Wire:
    """What was sent, and how to solve for what it says.

    Attributes:
        gradients: (V, ...) by parameter, in float64.
        noise: (V, 1) deviation of the noise on them, as they show it themselves.
        steps, tolerance: of the least squares of each layer.
        generator: of the probes that tell the error of a solution.
        taken: (V,) iterations of each solution so far.
    """

    gradients: Tensors
    noise: Tensor
    steps: int
    tolerance: float
    generator: torch.Generator
    taken: list[Tensor]


class Layer(Protocol):
    """One layer of a chain."""

    @property
    def name(self) -> str:
        """As the model has it."""
        ...

    def back(self, out: Estimate, wire: Wire) -> Estimate:
        """From its outputs to its inputs."""
        ...

    def through(self, pull: Tensor, out: Tensor) -> Tensor:
        """The loss's derivative by its inputs, from that by its outputs, and the outputs."""
        ...

    def told(self, pull: Tensor, inputs: Tensor) -> Tensor | None:
        """Its weight's gradient (V, O, I), flat inputs (V, D) given; ``None`` where none is used."""
        ...


def layer_input(weight: Tensor, pull: Tensor) -> Tensor:
    """The only input (V, I) of a linear layer, from the gradients of its weight (V, O, I) and outputs (V, O).

    The weight's gradient is their outer product; that of the outputs is the bias's gradient (Phong et al. 2018,
    IEEE TIFS 13(5), section III; Geiping et al. 2020, arXiv:2003.14053, proposition 3.1). All rows count, by least
    squares. Not finite where `pull` is zero.
    """
    return torch.einsum("vo,voi->vi", pull, weight) / pull.square().sum(1, keepdim=True)


def noise_of(weight: Tensor, pull: Tensor, epsilon: float) -> Tensor:
    """(V, 1) deviation of the noise on a linear layer's gradients: without any, the matrix has rank one.

    Args:
        weight, pull: as in `layer_input`.
        epsilon: of the type that was sent: nothing is more exact than its rounding.
    """
    rest = weight - pull[:, :, None] * layer_input(weight, pull)[:, None]
    freedoms = max(weight.shape[1] - 1, 1) * weight.shape[2]
    rounding = _ROUNDING * epsilon * weight.square().mean((1, 2)).sqrt()
    return torch.maximum((rest.square().sum((1, 2)) / freedoms).sqrt(), rounding)[:, None]


def measured(weight: Tensor, pull: Tensor, noise: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer's input (V, I) and its `Estimate.weight`, given its expected mean and spread (I,)."""
    value = layer_input(weight, pull)
    precision = pull.square().sum(1, keepdim=True) / (noise.square() * (1 + value.square()))
    total = precision + spread**-2
    return (value * precision + mean * spread**-2) / total, total.sqrt()


@dataclass(frozen=True, eq=False)
class Scaled:
    """A layer that multiplies each value by a number and adds another, (D,) each: normalization."""

    name: str
    factor: Tensor
    shift: Tensor

    def back(self, out: Estimate, wire: Wire) -> Estimate:
        """Its inverse."""
        value = (out.value - self.shift) / self.factor
        size = self.factor.abs()
        return Estimate(value, out.weight * size, self.through(out.pull, out.value), out.blur * size)

    def through(self, pull: Tensor, out: Tensor) -> Tensor:
        """Times the factor."""
        return pull * self.factor

    def told(self, pull: Tensor, inputs: Tensor) -> None:
        """Nothing."""


@dataclass(frozen=True, eq=False)
class Activation:
    """A function of each value, increasing where it has a slope.

    Attributes:
        inverse: input from output.
        slope: derivative of the output by the input, from the output.
        low, high: between which outputs lie.
        dead: whether outputs at `low` say nothing of the input.
    """

    name: str
    inverse: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    low: float = -inf
    high: float = inf
    dead: bool = False

    def back(self, out: Estimate, wire: Wire) -> Estimate:
        """Errors grow where the function is flat."""
        value = self._within(out)
        slope, bend = self.slope(value), grad(lambda h: self.slope(h).sum())(value)
        return Estimate(self.inverse(value), out.weight * slope, out.pull * slope, (out.pull * bend).abs() / out.weight)

    def through(self, pull: Tensor, out: Tensor) -> Tensor:
        """Times the slope."""
        return pull * self.slope(out)

    def told(self, pull: Tensor, inputs: Tensor) -> None:
        """Nothing."""

    def _within(self, out: Estimate) -> Tensor:
        if self.dead:
            return torch.where(out.value * out.weight < 3, self.low, out.value)
        margin = (0.25 / out.weight).clamp(1e-9, 0.05)  # how near to its bounds an output may lie for all we know
        return torch.minimum(torch.maximum(out.value, self.low + margin), self.high - margin)


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer.

    Attributes:
        matrix: (O, I).
        mean, spread: (I,) of its inputs, expected.
    """

    name: str
    matrix: Tensor
    mean: Tensor
    spread: Tensor

    def back(self, out: Estimate, wire: Wire) -> Estimate:
        """Its inputs, from its weight's gradient and the derivative by its outputs; of these, nothing else is used."""
        weight = wire.gradients[f"{self.name}.weight"]
        value, sure = measured(weight, out.pull, wire.noise, self.mean, self.spread)
        pull = self.through(out.pull, value)
        return Estimate(value, sure, pull, torch.zeros_like(pull))

    def through(self, pull: Tensor, out: Tensor) -> Tensor:
        """Times the matrix."""
        return pull @ self.matrix

    def told(self, pull: Tensor, inputs: Tensor) -> Tensor:
        """The outer product."""
        return pull[:, :, None] * inputs[:, None]
