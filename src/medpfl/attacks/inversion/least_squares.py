"""Linear least squares for V independent problems at once, without their matrices."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Equations", "Fit", "least_squares"]


class Equations(Protocol):
    """The left sides of V systems with M equations in D unknowns."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the left sides (V, M) for unknowns (V, D)."""
        ...

    def adjoint(self, residual: Tensor) -> Tensor:
        """Apply the transposed systems to (V, M); the result is (V, D)."""
        ...


class Fit(NamedTuple):
    """Unknowns (V, D), and iterations (V,) for each system."""

    x: Tensor
    steps: Tensor


def least_squares(equations: Equations, right: Tensor, steps: int, tolerance: float) -> Fit:
    """Solve by conjugate gradients on the normal equations (CGLS: Hestenes and Stiefel 1952; Bjorck 1996, section 7.4).

    Args:
        equations: left sides.
        right: (V, M) right sides.
        steps: maximum iterations.
        tolerance: fraction of its initial size to which the gradient of a system's squared residual must fall.
    """
    residual = right.clone()
    gradient = equations.adjoint(residual)
    x, along, size = torch.zeros_like(gradient), gradient, gradient.square().sum(1)
    goal, taken = tolerance**2 * size, torch.zeros(len(right), dtype=torch.long, device=right.device)
    for _ in range(steps):
        going = size > goal
        if not going.any():
            break
        taken += going
        change = equations.forward(along)
        length = torch.where(going, size / change.square().sum(1), 0.0)[:, None]
        x = x + length * along
        residual = residual - length * change
        gradient = equations.adjoint(residual)
        before, size = size, torch.where(going, gradient.square().sum(1), size)
        along = gradient + torch.where(going, size / before, 0.0)[:, None] * along
    return Fit(x, taken)
