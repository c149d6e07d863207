"""Limited-memory BFGS on a stack of independent problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from medpfl.attacks.optimize.lbfgs_pairs import Pairs
from medpfl.attacks.optimize.optimizer import Ledger, Optimizer, Problem, Solution, described
from medpfl.core import progress
from medpfl.core.errors import InputError

if TYPE_CHECKING:
    from medpfl.attacks.optimize.racing import Race

__all__ = ["LBFGS"]

_TRIALS = 12
_SUFFICIENT = 1e-4

_LOOK = 50
"""Number of steps after which a row's movement is checked."""

_MATCHED = 1e-3
"""Objective above which slow movement does not end a row: it may be noise, or a search still far from its end."""


@dataclass(frozen=True, repr=False)
class LBFGS(Optimizer):
    """L-BFGS (Liu and Nocedal 1989) with Armijo backtracking, separate for every row.

    The direction uses the compact representation (Byrd, Nocedal and Schnabel 1994, equation 3.1). The first trial step
    is 1, and further trials are interpolated quadratically. A row whose line search fails drops its history. If the
    line search then fails again, the row has stalled: it has reached float precision or a kink.

    Attributes:
        history: pairs (step, gradient change) to keep.
        tolerance: objective below which a row has converged.
        patience: steps within which a row's objective must fall by 1 %; otherwise the row has stalled.
        still: movement within 50 steps, relative to a row's length, below which the row has stalled once its objective
            is below 1e-3. The objective that can be reached depends on the model; the remaining movement does not. 0:
            no such test.
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
            raise InputError(f"still is {self.still}: it must be at least 0 and below 1")

    def minimize(
        self, problem: Problem, start: Tensor, steps: int, race: Race | None = None, most: Tensor | None = None
    ) -> Solution:
        """Run at most `steps` iterations on each row. The last may take `_TRIALS` evaluations beyond `most`."""
        ledger = Ledger(start, race, most)
        state = _State.at(problem, start, self.history, ledger)
        for step in range(steps):
            state = self._retire(state, ledger, step)
            if not len(state.rows):
                break
            state.iterate(problem, ledger)
            progress.report((step + 1) / steps, described(step + 1, steps, ledger.loss))
        ledger.steps[state.rows.cpu()] = steps
        self._retire(state, ledger, steps)
        return ledger.solution()

    def _retire(self, state: _State, ledger: Ledger, step: int) -> _State:
        """End the rows that are done, and return the state of the others."""
        broken = ~(state.loss.isfinite() & state.gradient.isfinite().all(1))
        stalled = state.failed | ledger.slow(state.rows, step, self.patience) | state.settled(step, self.still)
        converged = state.loss < self.tolerance
        keep = ledger.end(state.rows, step, {"nonfinite": broken, "converged": converged, "stalled": stalled})
        return state if keep.all() else state.take(keep)


class _State:
    """State of the A active rows: points, gradients, and M pairs each."""

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
        """Return a mask (A,): the row matches, and moved by less than `share` of its length since the last check.

        Rows are checked every `_LOOK` steps; at other steps the mask is False.
        """
        if not step or step % _LOOK:
            return torch.zeros_like(self.failed)
        moved, self.before = torch.linalg.vector_norm(self.z - self.before, dim=1), self.z
        return (moved < share * torch.linalg.vector_norm(self.z, dim=1)) & (self.loss < _MATCHED)

    def iterate(self, problem: Problem, ledger: Ledger) -> None:
        """Do one iteration: a direction, a line search, and a new pair."""
        fresh = self.pairs.scale == 0
        direction, slope = self._direction()
        z, loss, gradient, found = self._search(problem, ledger, direction, slope)
        self.pairs.add(z - self.z, gradient - self.gradient, gradient, found)
        self.failed = ~found & fresh
        self.z, self.loss, self.gradient = z, loss, gradient
        ledger.note(self.rows, z, loss)

    def _direction(self) -> tuple[Tensor, Tensor]:
        """Return descent directions (A, D) and slopes (A,) along them.

        Where the history gives an uphill direction, drop it and use steepest descent.
        """
        step = self.pairs.times(self.gradient)
        slope = -torch.linalg.vecdot(step, self.gradient)
        uphill = ~(slope < 0)
        self.pairs.forget(uphill)
        step = torch.where(uphill[:, None], self.gradient, step)
        return -step, torch.where(uphill, -self.gradient.square().sum(1), slope)

    def _search(
        self, problem: Problem, ledger: Ledger, direction: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the first point along each direction that lowers the objective enough (Armijo 1966)."""
        first = 1 / self.gradient.abs().sum(1).clamp(min=1e-30)
        length = torch.where(self.pairs.scale == 0, first.clamp(max=1.0), torch.ones_like(first))
        z, loss, gradient = self.z.clone(), self.loss.clone(), self.gradient.clone()
        open_ = torch.arange(len(z), device=z.device)
        for _ in range(_TRIALS):
            # Pass the same tensor while all rows are open, so that the problem need not index its data again.
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
