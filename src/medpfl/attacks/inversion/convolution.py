"""Inversion of a convolution: its inputs by least squares over all known data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medpfl.attacks.inversion.gaussian_prior import Expected
from medpfl.attacks.inversion.layers import Estimate, Wire
from medpfl.attacks.inversion.least_squares import least_squares

__all__ = ["Convolution"]

_PROBE = 1e-2
"""Tolerance for a solution that only has to show the size of an error."""


@dataclass(frozen=True, eq=False)
class Convolution:
    """A two-dimensional convolution on inputs (C, H, W), with L output positions and O kernels.

    Each kernel has K = C * height * width weights.

    Attributes:
        kernel: (O, K).
        bias: (O, 1), zero without a bias.
        shape: (C, H, W).
        geometry: ``kernel_size``, ``dilation``, ``padding`` and ``stride`` for `torch.nn.functional.unfold`.
        factor, shift: (D,) scale and shift applied to the inputs before the convolution.
        expected: prior for the inputs before scale and shift.
        first: True if the inputs are the image.
    """

    name: str
    kernel: Tensor
    bias: Tensor
    shape: tuple[int, ...]
    geometry: dict[str, Any]
    factor: Tensor
    shift: Tensor
    expected: Expected
    first: bool

    def patches(self, inputs: Tensor) -> Tensor:
        """Return the input patches (V, K, L) for flat inputs (V, D), without `shift`."""
        return functional.unfold((self.factor * inputs).view(-1, *self.shape), **self.geometry)

    def shifted(self, inputs: Tensor) -> Tensor:
        """Return the input patches (V, K, L) that the kernels receive."""
        return functional.unfold((self.factor * inputs + self.shift).view(-1, *self.shape), **self.geometry)

    def gathered(self, patches: Tensor) -> Tensor:
        """Apply the transpose of `patches`; the result is (V, D)."""
        return self.factor * functional.fold(patches, self.shape[1:], **self.geometry).flatten(1)

    def through(self, pull: Tensor, out: Tensor) -> Tensor:
        """Return the loss's derivative (V, D) with respect to the inputs, given the one for the outputs (V, O * L)."""
        return self.gathered(self.kernel.T @ pull.view(len(pull), len(self.kernel), -1))

    def told(self, pull: Tensor, inputs: Tensor) -> Tensor:
        """Return the kernels' gradient (V, O, K)."""
        return pull.view(len(pull), len(self.kernel), -1) @ self.shifted(inputs).transpose(1, 2)

    def back(self, out: Estimate, wire: Wire) -> Estimate:
        """Return the most likely inputs. Their error is measured on a probe, one value per channel."""
        system = _System(self, out, wire)
        fit = least_squares(system, system.right(out, wire), wire.steps, wire.tolerance)
        wire.taken.append(fit.steps)
        value, pull = self.expected.mean + self.expected.into(fit.x), self.through(out.pull, out.value)
        weight = torch.ones_like(value) if self.first else self._weight(system, wire)
        return Estimate(value, weight, pull, torch.zeros_like(pull))

    def _weight(self, system: _System, wire: Wire) -> Tensor:
        """Return 1 / standard deviation of the inputs' errors, one value per channel.

        The equations are scaled to unit noise, so the solution for pure noise has the size of an error.
        """
        # One probe for all: a victim's solution must not depend on its position in the stack.
        noise = torch.randn(sum(system.sizes), dtype=torch.float64, generator=wire.generator).to(self.kernel.device)
        probe = least_squares(system, noise.expand(len(wire.noise), -1), wire.steps, _PROBE)
        wire.taken.append(probe.steps)
        error = self.expected.into(probe.x).unflatten(1, (self.shape[0], -1))
        return error.square().mean(2, keepdim=True).rsqrt().expand_as(error).flatten(1)


class _System:
    """The equations for a convolution's inputs, each divided by the standard deviation of its error.

    They are the outputs (O * L equations), the kernels' gradients (O * K), and the inputs' prior (D).
    """

    def __init__(self, layer: Convolution, out: Estimate, wire: Wire) -> None:
        self.layer = layer
        form = (len(out.value), len(layer.kernel), -1)
        self.weight, self.pull = out.weight.view(form), out.pull.view(form)
        self.sizes = [out.value.shape[1], layer.kernel.numel(), layer.expected.mean.numel()]
        # An error in the outputs' derivative reaches the gradients times the inputs; the prior gives their size.
        size = layer.shifted(layer.expected.mean[None]).square().mean().sqrt()
        blur = out.blur.view(form).square().sum(2) * size.square()
        self.scale = (wire.noise.square() + blur).rsqrt()[:, :, None]

    def right(self, out: Estimate, wire: Wire) -> Tensor:
        """Return the right sides (V, M), relative to the expected inputs."""
        seen = self.layer.shifted(self.layer.expected.mean[None])
        outputs = out.value.view(self.weight.shape) - self.layer.bias - self.layer.kernel @ seen
        sent = wire.gradients[f"{self.layer.name}.weight"].flatten(2)
        return self._rows(outputs, sent - self.pull @ seen.transpose(1, 2), torch.zeros_like(out.value[:, :1]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the left sides (V, M)."""
        seen = self.layer.patches(self.layer.expected.into(x))
        return self._rows(self.layer.kernel @ seen, self.pull @ seen.transpose(1, 2), x)

    def adjoint(self, residual: Tensor) -> Tensor:
        """Apply the transpose of `forward`; the result is (V, D)."""
        outputs, gradients, expected = residual.split(self.sizes, 1)
        back = self.layer.kernel.T @ (self.weight * outputs.reshape(self.weight.shape))
        back = back + (self.scale * gradients.unflatten(1, (len(self.layer.kernel), -1))).transpose(1, 2) @ self.pull
        return self.layer.expected.onto(self.layer.gathered(back)) + expected

    def _rows(self, outputs: Tensor, gradients: Tensor, expected: Tensor) -> Tensor:
        whole = expected.expand(len(outputs), self.sizes[2])
        return torch.cat([(self.weight * outputs).flatten(1), (self.scale * gradients).flatten(1), whole], 1)
