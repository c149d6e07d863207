"""Limited-memory BFGS on a stack of independent problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from medpfl.attacks.optimize.lbfgs_pairs import Pairs
from medpfl.attacks.optimize.optimizer import Ledger, Optimizer, Problem, Solution
from medpfl.core import progress
from medpfl.core.errors import InputError

if TYPE_CHECKING:
    from medpfl.attacks.optimize.racing import Race

__all__ = ["LBFGS"]

_TRIALS = 12
_SUFFICIENT = 1e-4

_LOOK = 50
"""Steps from one look at how far a row has moved to the next."""

_MATCHED = 1e-3
"""An objective above it is that of noise, or of a search that is not there yet, which may go slowly."""


@dataclass(frozen=True, repr=False)
class LBFGS(Optimizer):
    """L-BFGS (Liu and Nocedal 1989) with Armijo backtracking, for every row of its own.

    The direction is that of the compact representation (Byrd, Nocedal and Schnabel 1994, equation 3.1), the first
    trial step is 1, and trials are interpolated quadratically. A row whose line search fails forgets its history; if
    it fails again at once, it has stalled: float precision or a kink is reached.

    Attributes:
        history: pairs of steps and gradient changes kept.
        tolerance: a row whose objective is below it has converged.
        patience: a row whose objective has not fallen by a hundredth within so many steps has stalled.
        still: a row that matches to a thousandth and has moved by less than this share of its length within 50 steps
            has stalled: how low an objective must be depends on the model, how far a point still moves does not. 0: it
            goes on.
    """

    remembers: ClassVar[bool] = True
    history: int = 100
    tolerance: float = 1e-10
    patience: int = 200
    still: float = 2e-3

    def __post_init__(self) -> None:
        if self.history < 1 or self.patience < 1:
            raise InputError("history and patience must be at least 1")
        if not self.tolerance >= 0:
            raise InputError(f"tolerance is {self.tolerance}: it must be at least 0")
        if not 0 <= self.still < 1:
            raise InputError(f"still is {self.still}: it must be a share of the point's length, at least 0 and below 1")

    def minimize(self, problem: Problem, start: Tensor, steps: int, race: Race | None = None) -> Solution:
        """At most `steps` iterations of each row."""
        ledger = Ledger(start, race)
        state = _State.at(problem, start, self.history, ledger)
        for step in range(steps):
            state = self._retire(state, ledger, step)
            if not len(state.rows):
                break
            state.iterate(problem, ledger)
            progress.report((step + 1) / steps)
        ledger.steps[state.rows.cpu()] = steps
        self._retire(state, ledger, steps)
        return ledger.solution()

    def _retire(self, state: _State, ledger: Ledger, step: int) -> _State:
        """Ends the rows that are done, and returns the others."""
        broken = ~(state.loss.isfinite() & state.gradient.isfinite().all(1))
        stalled = state.failed | ledger.slow(state.rows, step, self.patience) | state.settled(step, self.still)
        converged = state.loss < self.tolerance
        keep = ledger.end(state.rows, step, {"nonfinite": broken, "converged": converged, "stalled": stalled})
        return state if keep.all() else state.take(keep)


class _State:
    """What the iteration remembers of its A active rows: points, gradients, and M pairs of each."""

    def __init__(self, rows: Tensor, z: Tensor, loss: Tensor, gradient: Tensor, history: int) -> None:
        self.rows, self.z, self.loss, self.gradient = rows, z, loss, gradient
        self.pairs = Pairs(z, history)
        self.failed = torch.zeros_like(loss, dtype=torch.bool)
        self.before = z

    @classmethod
    def at(cls, problem: Problem, start: Tensor, history: int, ledger: Ledger) -> _State:
        rows = torch.arange(len(start), device=start.device)
        loss, gradient = problem.evaluate(start, rows)
        ledger.evaluations += 1
        ledger.note(rows, start, loss)
        return cls(rows, start.clone(), loss, gradient, history)

    def take(self, keep: Tensor) -> _State:
        for name in ("rows", "z", "loss", "gradient", "failed", "before"):
            setattr(self, name, getattr(self, name)[keep])
        self.pairs.take(keep)
        return self

    def settled(self, step: int, share: float) -> Tensor:
        """(A,) rows that match, and moved by less than that share of their length since the last look, at each look."""
        if not step or step % _LOOK:
            return torch.zeros_like(self.failed)
        moved, self.before = torch.linalg.vector_norm(self.z - self.before, dim=1), self.z
        return (moved < share * torch.linalg.vector_norm(self.z, dim=1)) & (self.loss < _MATCHED)

    def iterate(self, problem: Problem, ledger: Ledger) -> None:
        """One direction, one line search, one new pair."""
        fresh = self.pairs.scale == 0
        direction, slope = self._direction()
        z, loss, gradient, found = self._search(problem, ledger, direction, slope)
        self.pairs.add(z - self.z, gradient - self.gradient, gradient, found)
        self.failed = ~found & fresh
        self.z, self.loss, self.gradient = z, loss, gradient
        ledger.note(self.rows, z, loss)

    def _direction(self) -> tuple[Tensor, Tensor]:
        """Descent directions (A, D) and slopes (A,) along them; steepest descent where history misleads."""
        step = self.pairs.times(self.gradient)
        slope = -torch.linalg.vecdot(step, self.gradient)
        uphill = ~(slope < 0)
        self.pairs.forget(uphill)
        step = torch.where(uphill[:, None], self.gradient, step)
        return -step, torch.where(uphill, -self.gradient.square().sum(1), slope)

    def _search(
        self, problem: Problem, ledger: Ledger, direction: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first point along each direction that lowers the objective enough (Armijo 1966)."""
        first = 1 / self.gradient.abs().sum(1).clamp(min=1e-30)
        length = torch.where(self.pairs.scale == 0, first.clamp(max=1.0), torch.ones_like(first))
        z, loss, gradient = self.z.clone(), self.loss.clone(), self.gradient.clone()
        open_ = torch.arange(len(z), device=z.device)
        for _ in range(_TRIALS):
            # The same tensor where no row is out: the problem need not pick anew what it knows of the rows.
            rows = self.rows if len(open_) == len(z) else self.rows[open_]
            trial = torch.addcmul(self.z[open_], length[open_, None], direction[open_])
            value, slopes = problem.evaluate(trial, rows)
            ledger.evaluations[rows.cpu()] += 1
            enough = value <= self.loss[open_] + _SUFFICIENT * length[open_] * slope[open_]
            enough &= slopes.isfinite().all(1)
            taken = open_[enough]
            z[taken], loss[taken], gradient[taken] = trial[enough], value[enough], slopes[enough]
            open_, value = open_[~enough], value[~enough]
            if not len(open_):
                break
            old, rise = length[open_], value - self.loss[open_]
            best = -slope[open_] * old.square() / (2 * (rise - slope[open_] * old))
            length[open_] = best.nan_to_num(0.0).clamp(0.1 * old, 0.5 * old)
        found = torch.ones_like(self.failed)
        found[open_] = False
        return z, loss, gradient, found
