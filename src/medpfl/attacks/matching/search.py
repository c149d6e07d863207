"""Gradient matching: search for images whose update is nearest to the sent one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from medpfl.attacks.matching.constraints import Constraint, Free
from medpfl.attacks.matching.iterates import Iterates
from medpfl.attacks.matching.label_targets import label_vectors
from medpfl.attacks.matching.labels import Labels, LastLayer
from medpfl.attacks.matching.objectives import Objective, SquaredDistance
from medpfl.attacks.matching.orders import likely_sequences, unknown_order
from medpfl.attacks.matching.priors import NoPrior, Prior
from medpfl.attacks.matching.problem import Matching
from medpfl.attacks.matching.restarts import Starts, heats
from medpfl.attacks.matching.stages import WARM_UP, Stage
from medpfl.attacks.matching.starts import Start, Suited
from medpfl.attacks.optimize.coordinates import Basis, Blocks, Spectral
from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.attacks.optimize.optimizer import Optimizer, Solution
from medpfl.attacks.optimize.racing import Race
from medpfl.attacks.optimize.stacks import variables_like
from medpfl.core import progress, trace
from medpfl.core.errors import InputError
from medpfl.core.roles import Attack
from medpfl.core.types import Observation, Reconstruction

__all__ = ["GradientMatching"]

_LABEL_STEPS = 20

_DUMMIES = 64
"""Number of made-up images on which the model's predictions are taken, since the target images are unknown."""

Stages = list[tuple[Callable[[], Matching], int]]
"""The stages of a search, each a problem and its number of steps.

A problem is made when its turn comes, since it holds its own targets."""


@dataclass(frozen=True, repr=False)
class GradientMatching(Attack):
    """Search for images (and labels) whose update has the smallest distance from the sent one.

    The attacker differentiates through the same `local_update` that the client called, in every view of the
    observation. A granted `medpfl.core.types.Channel` is used in each view. If the last layer has at least twice as
    many inputs as the image has pixels, and its update does not mix with others, it is matched alone.
    Needs: the update, the plan, the model.

    Attributes:
        objective: distance between updates.
        prior: term that favors plausible images.
        optimizer: optimizer for the search.
        start: initial images; if they are not rough, there is no warm-up.
        labels: method to find labels that are not granted.
        constraint: constraint on every iterate; only for optimizers that project.
        basis: image coordinates in which the optimizer moves.
        warmup: stages before the main search; each takes at most a quarter of the steps, unless it sets its `share`.
        restarts: maximum restarts per victim; the one with the lowest objective is the guess.
        halving: successive halving: after every ``halving * steps`` steps, drop the worse half of each victim's
            restarts until one is left (see `medpfl.attacks.optimize.racing.Race`). All restarts are then made, whatever
            `enough` says. Warm-up has another objective, so a cut due there waits for the first step after it. 0: every
            restart runs to its end, one after the other.
        largest: ignore in the distance every tensor from the first with more elements than this onward, except the last
            layer; 0: use all tensors. A deep network has most of its weights where it sees the image at its coarsest:
            they take time and reveal little about pixels. Nothing is ignored where the last layer's update mixes with
            others (see `medpfl.attacks.matching.stages.Stage`).
        enough: objective below which a victim gets no further restart.
        orders: number of label sequences that compete where several local steps use the images in an unknown order
            (see `medpfl.attacks.matching.orders`). The race is successive halving in a quarter of the steps, with
            equally many evaluations between two cuts; the search itself then begins anew. 1: no race, the likeliest
            sequence. 0: the labels in the given or inferred order. Labels that are optimized do not compete.
        steps: maximum steps per restart, warm-up included.
        evaluations: evaluations of the objective after which a restart begins no further step, warm-up and a race of
            label sequences included; 0: no limit. A step takes one evaluation, and several where a line search
            backtracks. A race leaves the search a seventh of them at least.
    """

    objective: Objective = SquaredDistance()
    prior: Prior = NoPrior()
    optimizer: Optimizer = LBFGS()
    start: Start = Suited()
    labels: Labels = LastLayer()
    constraint: Constraint = Free()
    basis: Basis = Spectral()
    warmup: tuple[Stage, ...] = WARM_UP
    restarts: int = 1
    halving: float = 0.0
    largest: int = 0
    enough: float = 1e-5
    orders: int = 8
    steps: int = 1000
    evaluations: int = 0

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.steps < 1:
            raise InputError(f"steps is {self.steps} and restarts {self.restarts}: both must be at least 1")
        if not 0 <= self.halving < 1:
            raise InputError(f"halving is {self.halving}: it is a share of the steps, at least 0 and below 1")
        if self.largest < 0 or self.evaluations < 0:
            raise InputError(f"largest is {self.largest} and evaluations {self.evaluations}: both must be at least 0")
        if self.orders < 0:
            raise InputError(f"orders is {self.orders}: it must be at least 0")

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Reconstruct the images of each victim."""
        # A victim's draws must not depend on the other victims, so all seeds are drawn first, in order.
        (common,), own = _spawn(generator, 1), _spawn(generator, len(seen))
        start = self.start.of(seen, generator)
        shape = (seen.num_images, *seen.image_shape)
        dummy = torch.cat([start(shape, common) for _ in range(-(-_DUMMIES // shape[0]))])[:_DUMMIES].to(
            variables_like(seen)
        )
        classes = seen.labels if seen.labels is not None else self.labels.infer(seen, dummy)
        played, raced = torch.zeros(len(seen), dtype=torch.long), 0.0
        if classes is not None and self.orders and unknown_order(seen):
            seen, classes, played, raced = self._ordered(seen, classes, dummy, start, common, own)
        labels = None if classes is None else label_vectors(seen, classes, dummy[:1])
        problem = Matching(seen, labels, self.objective, self.prior, self.constraint, self.basis)
        found, iterates = Starts(seen, self.restarts), Iterates(len(seen), self.steps)
        found.evaluations += played
        race = Race(self.restarts, max(1, round(self.halving * self.steps))) if self.halving else None
        together = max(1, len(seen) // self.restarts) if self.optimizer.remembers else len(seen)
        for victims, attempts in heats(found, self.enough, together if race else 0):
            starts = [self.start.again() if attempt else start for attempt in attempts]
            z = torch.cat([self._start(s, problem, victims, own) for s in starts])
            rows = victims.repeat(len(attempts))
            stages = self._stages(problem, all(s.rough for s in starts), self.steps)
            # A race runs all restarts of some victims; otherwise one restart runs for all that still need it.
            over = victims.tolist() if race else attempts
            count = len(seen) if race else self.restarts
            with progress.part(raced, 1.0), progress.part(over[0] / count, (over[-1] + 1) / count):
                limit = self._limit(rows, played)
                found.add(victims, attempts, self._minimize(stages, z, iterates, rows, race, limit))
        return replace(found.reconstruction(problem, classes), trace=iterates.stacked())

    def _ordered(
        self,
        seen: Observation,
        classes: Tensor,
        dummy: Tensor,
        start: Start,
        common: torch.Generator,
        own: list[torch.Generator],
    ) -> tuple[Observation, Tensor, Tensor, float]:
        """Return the observation and classes (V, N) in the likeliest order, the race's evaluations (V,) and its share.

        The likeliest sequences of each victim compete from the same initial images. The winner is then taken as known.
        The share is that of the attack's work, for progress: each of the race's rounds takes a quarter of a search.
        """
        likely = likely_sequences(seen, classes, self.orders, common)
        count, victims = likely.labels.shape[1], torch.arange(len(seen))
        best, evaluations = torch.zeros(len(seen), dtype=torch.long), torch.zeros(len(seen), dtype=torch.long)
        rounds = (count - 1).bit_length()
        share = rounds / (rounds + 4 * self.restarts)
        if count > 1:
            vectors = functional.one_hot(likely.labels, seen.num_classes).to(dummy)
            problem = Matching(seen, vectors[:, 0], self.objective, self.prior, self.constraint, self.basis)
            problem = problem.among(vectors, likely.order)
            parts = victims.split(max(1, len(seen) // count))
            for i, some in enumerate(parts):
                with progress.part(share * i / len(parts), share * (i + 1) / len(parts)):
                    best[some], evaluations[some] = self._winners(problem, some, start, own)
        order = seen.order if likely.order is None else likely.order[victims, best]
        return replace(seen, order=order), likely.labels[victims, best], evaluations, share

    def _winners(
        self, problem: Matching, victims: Tensor, start: Start, own: list[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Let the guesses of some victims (A,) compete from the same images; return the best, and the evaluations.

        Guesses of one victim have the same objective in every stage, so that cuts fall within all stages.
        """
        count, steps = problem.guesses["labels"].shape[1], max(1, self.steps // 4)
        rounds = (count - 1).bit_length()
        race = Race(count, max(1, steps // (2**rounds - 1)), growing=True)
        guess, row = (
            t.flatten() for t in torch.meshgrid(torch.arange(count), torch.arange(len(victims)), indexing="ij")
        )
        z, loss = self._start(start, problem, victims, own).repeat(count, 1), torch.zeros(len(row))
        taken = torch.zeros(len(victims), dtype=torch.long)
        left = torch.full((len(row),), steps) if self.evaluations else None  # so that line searches do not overdraw it
        for make, most in self._stages(problem, start.rough, steps):
            stage, cuts = make().of(victims[row], guess), replace(race, victims=row)
            other = stage.basis != problem.basis
            begun = stage.join(*problem.split(z)) if other else z
            with progress.part(race.done / steps, (race.done + most) / steps):
                solution = self.optimizer.minimize(stage, begun, most, cuts, left)
            left = None if left is None else left - solution.evaluations
            taken.index_add_(0, row, solution.evaluations)
            keep = ~cuts.outranked(solution.loss.cpu(), most)
            z, loss = (problem.join(*stage.split(solution.z)) if other else solution.z)[keep], solution.loss.cpu()[keep]
            guess, row, race = guess[keep], row[keep], replace(race, done=race.done + most)
            left = None if left is None else left[keep]
        places = [torch.where(row == victim, loss, torch.inf).argmin() for victim in range(len(victims))]
        return guess[torch.stack(places)], taken

    def _start(self, start: Start, problem: Matching, victims: Tensor, own: list[torch.Generator]) -> Tensor:
        """Return the initial variables (A, D) of victims (A,)."""
        images = start.images(problem.free, victims, own).to(variables_like(problem.seen))
        logits = self._logits(problem.seen, [own[v] for v in victims.tolist()]) if problem.joint else None
        return problem.join(images, logits)

    def _logits(self, seen: Observation, own: list[torch.Generator]) -> Tensor:
        """Return label variables (rows, N, K); for masks (rows, N, K, H, W)."""
        shape = (seen.num_images, seen.num_classes, *seen.label_shape)
        return torch.stack([torch.randn(shape, generator=g) for g in own]).to(variables_like(seen))

    def _stages(self, problem: Matching, rough: bool, steps: int) -> Stages:
        """Return the warm-up stages (for rough initial images), then the main search, each with its number of steps."""
        stages: Stages = []
        if problem.joint:  # pixels would be fitted to wrong labels before the labels are right
            stages.append((problem.labels_only, min(_LABEL_STEPS, steps // 8)))
        problem = problem.up_to(self.largest) if self.largest else problem
        for stage in self.warmup if rough else ():
            stages.append((partial(_easier, problem, stage), stage.within(steps)))
        stages = [(make, most) for make, most in stages if most]

        def proper() -> Matching:
            return (problem.head_only() if problem.told_by_head() else None) or problem

        return [*stages, (proper, steps - sum(most for _, most in stages))]

    def _limit(self, victims: Tensor, played: Tensor) -> Tensor | None:
        """Return the evaluations (R,) that a race of label sequences left to the victims' searches, if limited."""
        least = -(-self.evaluations // 7)
        return (self.evaluations - played[victims]).clamp(min=least) if self.evaluations else None

    def _minimize(
        self,
        stages: Stages,
        z: Tensor,
        iterates: Iterates,
        victims: Tensor,
        race: Race | None,
        left: Tensor | None,
    ) -> Solution:
        """Run one stage after the other. `z` and the race's objective belong to the last stage, the main search.

        Args:
            stages: the stages, each with its number of steps.
            z: the rows' initial variables (R, D).
            iterates: keeps iterates if they are asked for.
            victims: the rows' victims (R,).
            race: a race of restarts.
            left: the rows' limits (R,) to evaluations.
        """
        parts, done, own = [], 0, stages[-1][0]().of(victims)
        for make, most in stages:
            stage = own if make is stages[-1][0] else make().of(victims)
            other = stage.basis != own.basis
            kept = trace.keeping(iterates.keeper(stage, victims, done))
            with kept, progress.part(done / self.steps, (done + most) / self.steps):
                cuts = replace(race, done=done) if race and stage is own else None
                begun = stage.join(*own.split(z)) if other else z
                parts.append(self.optimizer.minimize(stage, begun, most, cuts, left))
            z, done = parts[-1].z, done + most
            left = None if left is None else left - parts[-1].evaluations
            z = own.join(*stage.split(z)) if other else z
        taken, evaluations = (torch.stack([getattr(p, k) for p in parts]).sum(0) for k in ("steps", "evaluations"))
        return Solution(z, parts[-1].loss, taken, evaluations, parts[-1].ended)


def _easier(problem: Matching, stage: Stage) -> Matching:
    """Return the problem that a stage solves."""
    part = (problem.head_only() or problem) if stage.head else problem
    part = part.under(stage.prior, stage.objective)
    return part if stage.block == 1 else part.in_basis(Blocks(stage.block))


def _spawn(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """Return one generator per victim, so that a victim's draws do not depend on its neighbors'."""
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]
