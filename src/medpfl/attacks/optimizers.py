"""Minimizers of V independent problems at once, each with its own state and its own end.

Rows of a stack never mix: dropping a row, or adding one, leaves the others as they were, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medpfl.core import progress, trace
from medpfl.core.errors import InputError
from medpfl.core.spec import Part
from medpfl.core.types import Ended

__all__ = ["Optimizer", "Problem", "SignedAdam", "Solution"]


class Problem(Protocol):
    """V independent objectives of D variables each."""

    def evaluate(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values (A,) and gradients (A, D) at points (A, D) of the problems `rows` (A,)."""
        ...

    def project(self, z: Tensor, step: int) -> Tensor:
        """The nearest allowed points (A, D) after a step."""
        ...


@dataclass(frozen=True, eq=False)
class Solution:
    """Points (V, D) with the least value seen, those values (V,), steps and evaluations (V,), V reasons to end."""

    z: Tensor
    loss: Tensor
    steps: Tensor
    evaluations: Tensor
    ended: tuple[Ended, ...]


@dataclass(frozen=True, repr=False)
class Optimizer(Part):
    """Minimizes."""

    def minimize(self, problem: Problem, start: Tensor, steps: int) -> Solution:
        """At most `steps` steps from `start` (V, D)."""
        raise NotImplementedError


class Ledger:
    """The best points of all rows, and why each ended."""

    def __init__(self, start: Tensor) -> None:
        count = len(start)
        self.z = start.clone()
        self.loss = start.new_full((count,), torch.inf)
        self.steps = torch.zeros(count, dtype=torch.long)
        self.evaluations = torch.zeros(count, dtype=torch.long)
        self.ended: list[Ended] = ["max_steps"] * count

    def note(self, rows: Tensor, z: Tensor, loss: Tensor) -> None:
        """Keeps the points that are better than their rows' best; once a step."""
        better = loss < self.loss[rows]
        self.z[rows[better]] = z[better]
        self.loss[rows[better]] = loss[better]
        trace.step(rows, z)

    def end(self, rows: Tensor, why: Ended, step: int) -> None:
        """Says that rows have ended."""
        for row in rows.tolist():
            self.ended[row] = why
            self.steps[row] = step

    def solution(self) -> Solution:
        """All rows."""
        return Solution(self.z, self.loss, self.steps, self.evaluations, tuple(self.ended))


@dataclass(frozen=True, repr=False)
class SignedAdam(Optimizer):
    """Adam (Kingma and Ba 2015) on the sign of the gradient, its rate divided by 10 at 3/8, 5/8 and 7/8.

    As in Geiping et al. 2020 (arXiv:2003.14053, section 6 and appendix).

    Attributes:
        rate: the first learning rate, in units of the pixels.
        tolerance: a row whose objective is below it has converged.
        signed: whether the sign is taken.
    """

    rate: float = 0.05
    tolerance: float = 1e-9
    signed: bool = True

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise InputError(f"rate is {self.rate}: it must be above 0")

    def minimize(self, problem: Problem, start: Tensor, steps: int) -> Solution:
        """`steps` steps, fewer for a row that converges or is no longer finite."""
        ledger, rows, z = Ledger(start), torch.arange(len(start), device=start.device), start.clone()
        mean, square = torch.zeros_like(z), torch.zeros_like(z)
        for step in range(steps + 1):
            loss, gradient = problem.evaluate(z, rows)
            ledger.evaluations[rows.cpu()] += 1
            ledger.note(rows, z, loss)
            finite = loss.isfinite() & gradient.isfinite().all(1)
            done = loss < self.tolerance
            ledger.end(rows[~finite], "nonfinite", step)
            ledger.end(rows[finite & done], "converged", step)
            go = finite & ~done
            if step == steps:
                ledger.end(rows[go], "max_steps", step)
            if step == steps or not go.any():
                break
            if not go.all():
                rows, z, gradient, mean, square = (t[go] for t in (rows, z, gradient, mean, square))
            direction = gradient.sign() if self.signed else gradient
            mean = 0.9 * mean + 0.1 * direction
            square = 0.999 * square + 0.001 * direction.square()
            move = mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            z = problem.project(z - self._rate(step, steps) * move, step + 1)
            progress.report(step / steps)
        return ledger.solution()

    def _rate(self, step: int, steps: int) -> float:
        return self.rate * 0.1 ** sum(step >= steps * part for part in (3 / 8, 5 / 8, 7 / 8))
