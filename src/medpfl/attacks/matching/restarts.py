"""Restarts of a search: which run together, and their results."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medpfl.attacks.matching.problem import Matching
from medpfl.attacks.optimize.optimizer import Solution
from medpfl.core.types import Ended, Observation, Reconstruction

__all__ = ["Starts", "heats"]


class Starts:
    """The results of each victim's restarts."""

    def __init__(self, seen: Observation, restarts: int) -> None:
        self.loss = torch.full((len(seen), restarts), torch.inf)
        self.z: Tensor | None = None
        self.made = 0
        self.steps = torch.zeros(len(seen), restarts, dtype=torch.long)
        self.evaluations = torch.zeros(len(seen), dtype=torch.long)
        self.ended: dict[tuple[int, int], Ended] = {}

    def worse_than(self, loss: float) -> Tensor:
        """Return the victims (A,) whose best objective so far is not below `loss`."""
        return (~(self.loss.amin(1) < loss)).nonzero()[:, 0]

    def add(self, victims: Tensor, attempts: range, solution: Solution) -> None:
        """Add restarts for some victims (A,).

        The solution's row ``i * A + a`` is victim a's restart ``attempts[i]``.
        """
        if self.z is None:
            self.z = solution.z.new_zeros(*self.loss.shape, solution.z.shape[1])
        self.made = max(self.made, attempts[-1] + 1)
        rows, tries = victims.repeat(len(attempts)), torch.tensor(list(attempts)).repeat_interleave(len(victims))
        self.z[rows, tries] = solution.z
        self.loss[rows, tries] = solution.loss.nan_to_num(torch.inf, torch.inf).to(self.loss)
        self.steps[rows, tries] = solution.steps
        self.evaluations.index_add_(0, rows, solution.evaluations)
        self.ended |= dict(zip(zip(rows.tolist(), tries.tolist(), strict=True), solution.ended, strict=True))

    def reconstruction(self, problem: Matching, classes: Tensor | None) -> Reconstruction:
        """Return the restart with the lowest objective as the guess, the others as candidates in this order."""
        assert self.z is not None, "no start was made"
        order = self.loss[:, : self.made].argsort(dim=1, stable=True)
        rows, best = torch.arange(len(order)), order[:, 0]
        images, free = problem.split(self.z[rows[:, None], order])
        images = images.clamp(0, 1)
        return Reconstruction(
            guesses=images[:, 0],
            labels=classes if free is None else free[:, 0].argmax(2),
            loss=self.loss[rows, best],
            steps=self.steps[rows, best],
            evaluations=self.evaluations,
            ended=tuple(self.ended[v, a] for v, a in enumerate(best.tolist())),
            candidates=images if self.made > 1 else None,
            engine="vmap" if problem.together else "loop",
        )


def heats(found: Starts, enough: float, together: int) -> Iterator[tuple[Tensor, range]]:
    """Yield victims (A,) and the range of their restarts that run in one stack.

    If `together` is 0, restarts run one after the other, each for the victims whose objective is not yet below
    `enough`. Otherwise, all restarts of `together` victims run at once.
    """
    victims, restarts = found.loss.shape
    if together:
        for some in torch.arange(victims).split(together):
            yield some, range(restarts)
        return
    for attempt in range(restarts):
        some = found.worse_than(enough if attempt else -torch.inf)
        if not len(some):
            return
        yield some, range(attempt, attempt + 1)
