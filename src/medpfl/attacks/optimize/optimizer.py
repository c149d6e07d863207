"""Minimizers for V independent problems at once. Each problem has its own state and ends by itself.

Rows of a stack never mix: dropping or adding a row leaves the others unchanged, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from medpfl.core import progress, trace
from medpfl.core.errors import InputError
from medpfl.core.spec import Part
from medpfl.core.types import Ended

if TYPE_CHECKING:
    from medpfl.attacks.optimize.racing import Race

__all__ = ["Optimizer", "Problem", "SignedAdam", "Solution", "described"]


_DECAYS = (3 / 8, 5 / 8, 7 / 8)


class Problem(Protocol):
    """V independent objectives of D variables each."""

    def evaluate(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (A,) and gradients (A, D) at points (A, D) for the problems `rows` (A,)."""
        ...

    def project(self, z: Tensor, step: int) -> Tensor:
        """Return the nearest allowed points (A, D) after a step."""
        ...


@dataclass(frozen=True, eq=False)
class Solution:
    """Result for V problems.

    Attributes:
        z: (V, D) points with the lowest value found.
        loss: (V,) these values.
        steps: (V,) steps.
        evaluations: (V,) evaluations.
        ended: V reasons to end.
    """

    z: Tensor
    loss: Tensor
    steps: Tensor
    evaluations: Tensor
    ended: tuple[Ended, ...]


@dataclass(frozen=True, repr=False)
class Optimizer(Part):
    """An algorithm that minimizes a problem."""

    remembers: ClassVar[bool] = False
    """True if the optimizer keeps many points per row, so that the restarts of all victims do not fit in one stack."""

    def minimize(
        self, problem: Problem, start: Tensor, steps: int, race: Race | None = None, most: Tensor | None = None
    ) -> Solution:
        """Take at most `steps` steps from `start` (V, D).

        Args:
            problem: the V objectives.
            start: initial points (V, D).
            steps: maximum steps.
            race: rows that it prunes leave the stack; ``None``: no row is pruned.
            most: evaluations (V,) after which a row begins no further step; ``None``: no limit.
        """
        raise NotImplementedError


class Ledger:
    """The best point of each row, and why the row ended."""

    def __init__(self, start: Tensor, race: Race | None = None, most: Tensor | None = None) -> None:
        count = len(start)
        self.z, self.race, self.most = start.clone(), race, most
        self.loss = start.new_full((count,), torch.inf)
        self.milestone = self.loss.clone()
        self.steps = torch.zeros(count, dtype=torch.long)
        self.evaluations = torch.zeros(count, dtype=torch.long)
        self.ended: list[Ended] = ["max_steps"] * count

    def note(self, rows: Tensor, z: Tensor, loss: Tensor) -> None:
        """Keep the points that improve on their rows' best. Call once per step."""
        better = loss < self.loss[rows]
        self.z[rows[better]] = z[better]
        self.loss[rows[better]] = loss[better]
        trace.step(rows, z)

    def slow(self, rows: Tensor, step: int, patience: int, fall: float = 0.01) -> Tensor:
        """Return a mask (A,): the row's best fell by less than the fraction `fall` in `patience` steps.

        Rows are checked at each multiple of `patience`; at other steps the mask is False.
        """
        if not patience or step % patience:
            return torch.zeros_like(rows, dtype=torch.bool)
        slow = self.loss[rows] > (1 - fall) * self.milestone[rows]
        self.milestone = self.loss.clone()
        return slow

    def end(self, rows: Tensor, step: int, reasons: dict[Ended, Tensor]) -> Tensor:
        """Return a mask (A,): the row continues.

        The others end, each for the first of the reasons (A,) that holds.
        """
        go = torch.ones_like(rows, dtype=torch.bool)
        if self.most is not None:
            spent = (self.evaluations >= self.most)[rows.cpu()].to(rows.device)
            reasons = {**reasons, "out_of_budget": spent}
        if self.race is not None:
            reasons = {**reasons, "beaten": self.race.beaten(self.loss, step)[rows]}
        for why, holds in reasons.items():
            for row in rows[go & holds].tolist():
                self.ended[row], self.steps[row] = why, step
            go &= ~holds
        return go

    def solution(self) -> Solution:
        """Return the result for all rows."""
        return Solution(self.z, self.loss, self.steps, self.evaluations, tuple(self.ended))


def described(step: int, steps: int, loss: Tensor) -> Callable[[], str]:
    """Return a function that describes a step for a progress report; `loss` (V,) are the lowest objectives so far."""
    which = f", median of {len(loss)}" if len(loss) > 1 else ""
    return lambda: f"step {step} of {steps}, objective {float(loss.median()):.2g}{which}"


@dataclass(frozen=True, repr=False)
class SignedAdam(Optimizer):
    """Adam (Kingma and Ba 2015) on the gradient's sign; the rate is divided by 10 at 3/8, 5/8 and 7/8 of the steps.

    As in Geiping et al. 2020 (arXiv:2003.14053, section 6 and appendix). With `patience`, a row whose objective no
    longer falls moves on to its next rate early; after the last rate it has stalled. A sign does not tell how far to
    go, so the last five eighths of such a schedule move little. A linearly falling rate covers the same range and
    wastes no step.

    Attributes:
        rate: initial learning rate, in pixel units.
        tolerance: objective below which a row has converged.
        signed: use the gradient's sign.
        patience: steps between two checks on the objective; 0: no checks, rates depend only on the step.
        fall: minimum decrease between two checks, as a fraction of the best objective so far.
        schedule: ``'steps'``, the paper's, or ``'linear'``, from `rate` to 0, which excludes `patience`.
    """

    rate: float = 0.05
    tolerance: float = 1e-9
    signed: bool = True
    patience: int = 0
    fall: float = 0.01
    schedule: Literal["steps", "linear"] = "steps"

    def __post_init__(self) -> None:
        if self.schedule not in ("steps", "linear"):
            raise InputError(f"schedule is '{self.schedule}': it must be 'steps' or 'linear'")
        if self.schedule == "linear" and self.patience:
            raise InputError(f"patience is {self.patience}: it must be 0 if schedule is 'linear'")
        if not self.rate > 0:
            raise InputError(f"rate is {self.rate}: it must be above 0")
        if self.patience < 0 or not 0 < self.fall < 1:
            raise InputError(
                f"patience is {self.patience} and fall is {self.fall}: patience must be at least 0, and fall between "
                "0 and 1"
            )

    def minimize(
        self, problem: Problem, start: Tensor, steps: int, race: Race | None = None, most: Tensor | None = None
    ) -> Solution:
        """Take `steps` steps, fewer for a row that converges, stalls, is pruned, spent, or is no longer finite."""
        ledger, rows, z = Ledger(start, race, most), torch.arange(len(start), device=start.device), start.clone()
        mean, square, phase = torch.zeros_like(z), torch.zeros_like(z), torch.zeros_like(rows)
        tenths = self.rate * 0.1 ** torch.arange(len(_DECAYS) + 1, dtype=torch.float64).to(z)
        for step in range(steps + 1):
            loss, gradient = problem.evaluate(z, rows)
            ledger.evaluations[rows.cpu()] += 1
            ledger.note(rows, z, loss)
            due = sum(step >= steps * part for part in _DECAYS)
            phase = (phase + ledger.slow(rows, step, self.patience, self.fall)).clamp(min=due)
            reasons: dict[Ended, Tensor] = {
                "nonfinite": ~(loss.isfinite() & gradient.isfinite().all(1)),
                "converged": loss < self.tolerance,
                "stalled": phase > len(_DECAYS),
                "max_steps": torch.full_like(rows, step == steps, dtype=torch.bool),
            }
            go = ledger.end(rows, step, reasons)
            if not go.any():
                break
            if not go.all():
                rows, z, gradient, mean, square, phase = (t[go] for t in (rows, z, gradient, mean, square, phase))
            direction = gradient.sign() if self.signed else gradient
            mean = 0.9 * mean + 0.1 * direction
            square = 0.999 * square + 0.001 * direction.square()
            move = mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            rate = self.rate * (1 - step / steps) if self.schedule == "linear" else tenths[phase][:, None]
            z = problem.project(z - rate * move, step + 1)
            progress.report(step / steps, described(step, steps, ledger.loss))
        return ledger.solution()
