"""Inversion of layers: from an estimate of a layer's outputs to one of its inputs.

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
"""Rounding error of a float, in units of its dtype's machine epsilon."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate of values that a network computed.

    Attributes:
        value: (V, D) estimate.
        weight: (V, D) 1 / its error's standard deviation; 0: nothing is known.
        pull: (V, D) the loss's derivative with respect to the value.
        blur: (V, D) standard deviation of the error in `pull`.
    """

    value: Tensor
    weight: Tensor
    pull: Tensor
    blur: Tensor


@dataclass(frozen=True, eq=False)
class Wire:
    """The sent gradients, and settings for solving them.

    Attributes:
        gradients: (V, ...) by parameter, in float64.
        noise: (V, 1) standard deviation of their noise, estimated from themselves.
        steps, tolerance: settings of each layer's least squares.
        generator: generator for the probes that measure a solution's error.
        taken: (V,) iterations for each solution so far.
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
        """The layer's name in the model."""
        ...

    def back(self, out: Estimate, wire: Wire) -> Estimate:
        """Estimate the inputs from the outputs."""
        ...

    def through(self, pull: Tensor, out: Tensor) -> Tensor:
        """Return the loss's derivative with respect to the inputs, given that for the outputs, and the outputs."""
        ...

    def told(self, pull: Tensor, inputs: Tensor) -> Tensor | None:
        """Return the weight's gradient (V, O, I), given flat inputs (V, D); ``None`` for layers without a weight."""
        ...


def layer_input(weight: Tensor, pull: Tensor) -> Tensor:
    """Return a linear layer's single input (V, I) from the gradients of its weight (V, O, I) and outputs (V, O).

    The weight's gradient is the outer product of input and output gradient, and the output gradient is the bias's
    (Phong et al. 2018, IEEE TIFS 13(5), section III; Geiping et al. 2020, arXiv:2003.14053, proposition 3.1). The
    solution is by least squares over all rows. It is not finite where `pull` is zero.
    """
    return torch.einsum("vo,voi->vi", pull, weight) / pull.square().sum(1, keepdim=True)


def noise_of(weight: Tensor, pull: Tensor, epsilon: float) -> Tensor:
    """Return the noise's standard deviation (V, 1) on a linear layer's gradients.

    Without noise, the weight's gradient has rank one.

    Args:
        weight, pull: as in `layer_input`.
        epsilon: machine epsilon of the sent dtype; nothing is more exact than its rounding.
    """
    rest = weight - pull[:, :, None] * layer_input(weight, pull)[:, None]
    freedoms = max(weight.shape[1] - 1, 1) * weight.shape[2]
    rounding = _ROUNDING * epsilon * weight.square().mean((1, 2)).sqrt()
    return torch.maximum((rest.square().sum((1, 2)) / freedoms).sqrt(), rounding)[:, None]


def measured(weight: Tensor, pull: Tensor, noise: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Return a linear layer's input from its gradients and a prior, and 1 / its standard error, both (V, I).

    Both are NaN where `pull` is zero for all outputs.

    Args:
        weight, pull: as in `layer_input`.
        noise: (V, 1) standard deviation of the noise on the gradients.
        mean, spread: (I,) mean and standard deviation of the prior.
    """
    value = layer_input(weight, pull)
    precision = pull.square().sum(1, keepdim=True) / (noise.square() * (1 + value.square()))
    total = precision + spread**-2
    return (value * precision + mean * spread**-2) / total, total.sqrt()


@dataclass(frozen=True, eq=False)
class Scaled:
    """A layer that multiplies each value by a factor (D,) and adds a shift (D,), such as normalization."""

    name: str
    factor: Tensor
    shift: Tensor

    def back(self, out: Estimate, wire: Wire) -> Estimate:
        """Invert the scaling."""
        value = (out.value - self.shift) / self.factor
        size = self.factor.abs()
        return Estimate(value, out.weight * size, self.through(out.pull, out.value), out.blur * size)

    def through(self, pull: Tensor, out: Tensor) -> Tensor:
        """Multiply by the factor."""
        return pull * self.factor

    def told(self, pull: Tensor, inputs: Tensor) -> None:
        """Return ``None``."""


@dataclass(frozen=True, eq=False)
class Activation:
    """A function of each value that increases wherever it has a slope.

    Attributes:
        inverse: function from output to input.
        slope: function from output to the output's derivative with respect to the input.
        low, high: the outputs' range.
        dead: True if outputs at `low` reveal nothing about the input.
    """

    name: str
    inverse: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    low: float = -inf
    high: float = inf
    dead: bool = False

    def back(self, out: Estimate, wire: Wire) -> Estimate:
        """Invert the function. Errors grow where it is flat."""
        value = self._within(out)
        slope, bend = self.slope(value), grad(lambda h: self.slope(h).sum())(value)
        return Estimate(self.inverse(value), out.weight * slope, out.pull * slope, (out.pull * bend).abs() / out.weight)

    def through(self, pull: Tensor, out: Tensor) -> Tensor:
        """Multiply by the slope."""
        return pull * self.slope(out)

    def told(self, pull: Tensor, inputs: Tensor) -> None:
        """Return ``None``."""

    def _within(self, out: Estimate) -> Tensor:
        if self.dead:
            return torch.where(out.value * out.weight < 3, self.low, out.value)
        margin = (0.25 / out.weight).clamp(1e-9, 0.05)  # inverses diverge at the bounds
        return torch.minimum(torch.maximum(out.value, self.low + margin), self.high - margin)


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer.

    Attributes:
        matrix: (O, I) weight.
        mean, spread: (I,) prior for its inputs.
    """

    name: str
    matrix: Tensor
    mean: Tensor
    spread: Tensor

    def back(self, out: Estimate, wire: Wire) -> Estimate:
        """Estimate the inputs from the weight's gradient and the outputs' derivative, not from the outputs."""
        weight = wire.gradients[f"{self.name}.weight"]
        value, sure = measured(weight, out.pull, wire.noise, self.mean, self.spread)
        pull = self.through(out.pull, value)
        return Estimate(value, sure, pull, torch.zeros_like(pull))

    def through(self, pull: Tensor, out: Tensor) -> Tensor:
        """Multiply by the matrix."""
        return pull @ self.matrix

    def told(self, pull: Tensor, inputs: Tensor) -> Tensor:
        """Return the outer product."""
        return pull[:, :, None] * inputs[:, None]
