"""Gradient matching: look for images whose update is the one that was sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from medpfl.attacks.matching.constraints import Constraint, Free
from medpfl.attacks.matching.iterates import Iterates
from medpfl.attacks.matching.label_targets import label_vectors
from medpfl.attacks.matching.labels import Labels, LastLayer
from medpfl.attacks.matching.objectives import Objective, SquaredDistance
from medpfl.attacks.matching.priors import NoPrior, Prior
from medpfl.attacks.matching.problem import Matching
from medpfl.attacks.matching.restarts import Starts, heats
from medpfl.attacks.matching.stages import WARM_UP, Stage
from medpfl.attacks.matching.starts import Normal, Start
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
"""Made-up images that tell what the model says without the truth."""

Stages = list[tuple[Callable[[], Matching], int]]
"""Problems, made when their turn comes, since each holds what it compares with; and steps of each."""


@dataclass(frozen=True, repr=False)
class GradientMatching(Attack):
    """Minimizes, over images (and labels), the distance of their update from the sent one.

    The attacker differentiates through the same `local_update` that the client called, in every view of
    the observation. What the `medpfl.core.types.Channel` of a view says is used where it is granted. Where the last
    layer has at least twice as many inputs as the image has pixels, and its update is its own, it is matched alone.
    Needs: the update, the plan, the model.

    Attributes:
        objective: distance of updates.
        prior: what images look like.
        optimizer: how to minimize.
        start: first guess; after one that is not rough there is no warm-up.
        labels: how labels are found, unless they are granted.
        constraint: what every iterate must be; for optimizers that project.
        basis: coordinates of the images that the optimizer moves in.
        warmup: stages before the attack proper; each takes a quarter of the steps at most.
        restarts: starts at most; the one with the least objective is the guess.
        halving: share of the steps after which, again and again until one is left, the worse half of a victim's starts
            is given up (see `medpfl.attacks.optimize.racing.Race`). All starts are then made, whatever `enough` says.
            Of steps before the attack proper the objective is another one: a cut that falls there waits for its first
            step. 0: every start runs to its end, one after the other.
        largest: from the first tensor of more numbers than that on, the last layer's aside, the update is left out of
            the distance; 0: nothing is. A deep network has most of its weights where it sees the image coarsest: they
            take time and say little of pixels. Nothing is left out where the last layer's update is not its own (see
            `medpfl.attacks.matching.stages.Stage`).
        enough: a victim whose objective is below it gets no further start.
        steps: at most so many, each start, warm-up included.
    """

    objective: Objective = SquaredDistance()
    prior: Prior = NoPrior()
    optimizer: Optimizer = LBFGS()
    start: Start = Normal()
    labels: Labels = LastLayer()
    constraint: Constraint = Free()
    basis: Basis = Spectral()
    warmup: tuple[Stage, ...] = WARM_UP
    restarts: int = 1
    halving: float = 0.0
    largest: int = 0
    enough: float = 1e-5
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.steps < 1:
            raise InputError(f"steps is {self.steps} and restarts {self.restarts}: both must be at least 1")
        if not 0 <= self.halving < 1:
            raise InputError(f"halving is {self.halving}: it is a share of the steps, at least 0 and below 1")
        if self.largest < 0:
            raise InputError(f"largest is {self.largest}: it must be at least 0")

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """The attack on every victim of the observation."""
        # Whatever the other victims are: the draws of all come from the first numbers, in their order.
        (common,), own = _spawn(generator, 1), _spawn(generator, len(seen))
        start = self.start.of(seen, generator)
        shape = (seen.num_images, *seen.image_shape)
        dummy = torch.cat([start(shape, common) for _ in range(-(-_DUMMIES // shape[0]))])[:_DUMMIES].to(
            variables_like(seen)
        )
        classes = seen.labels if seen.labels is not None else self.labels.infer(seen, dummy)
        labels = None if classes is None else label_vectors(seen, classes, dummy[:1])
        problem = Matching(seen, labels, self.objective, self.prior, self.constraint, self.basis)
        found, iterates = Starts(seen, self.restarts), Iterates(len(seen), self.steps)
        race = Race(self.restarts, max(1, round(self.halving * self.steps))) if self.halving else None
        together = max(1, len(seen) // self.restarts) if self.optimizer.remembers else len(seen)
        for victims, attempts in heats(found, self.enough, together if race else 0):
            starts = [self.start.again() if attempt else start for attempt in attempts]
            z = torch.cat([self._start(s, problem, victims, own) for s in starts])
            rows = victims.repeat(len(attempts))
            stages = self._stages(problem, all(s.rough for s in starts))
            # A race runs all starts of some victims, the rest is one start of all that still need it.
            over = victims.tolist() if race else attempts
            count = len(seen) if race else self.restarts
            with progress.part(over[0] / count, (over[-1] + 1) / count):
                found.add(victims, attempts, self._minimize(stages, z, iterates, rows, race))
        return replace(found.reconstruction(problem, classes), trace=iterates.stacked())

    def _start(self, start: Start, problem: Matching, victims: Tensor, own: list[torch.Generator]) -> Tensor:
        """Variables (A, D) to start from, of victims (A,)."""
        images = start.images(problem.shape, victims, own).to(variables_like(problem.seen))
        logits = self._logits(problem.seen, [own[v] for v in victims.tolist()]) if problem.joint else None
        return problem.join(images, logits)

    def _logits(self, seen: Observation, own: list[torch.Generator]) -> Tensor:
        """Label variables (rows, N, K), of masks (rows, N, K, H, W)."""
        shape = (seen.num_images, seen.num_classes, *seen.label_shape)
        return torch.stack([torch.randn(shape, generator=g) for g in own]).to(variables_like(seen))

    def _stages(self, problem: Matching, rough: bool) -> Stages:
        """The warm-up's stages, if the start is rough, then the attack proper; with steps for each, at most all."""
        stages: Stages = []
        if problem.joint:  # wrong labels would bend the pixels before the labels are right
            stages.append((problem.labels_only, min(_LABEL_STEPS, self.steps // 8)))
        problem = problem.up_to(self.largest) if self.largest else problem
        for stage in self.warmup if rough else ():
            stages.append((partial(_easier, problem, stage), stage.within(self.steps)))
        stages = [(make, most) for make, most in stages if most]

        def proper() -> Matching:
            return (problem.head_only() if problem.told_by_head() else None) or problem

        return [*stages, (proper, self.steps - sum(most for _, most in stages))]

    def _minimize(self, stages: Stages, z: Tensor, iterates: Iterates, victims: Tensor, race: Race | None) -> Solution:
        """One stage after the other; `z` is in the last one's basis, the attack's own, and so is a race's objective."""
        parts, done, own = [], 0, stages[-1][0]().of(victims)
        for make, most in stages:
            stage = own if make is stages[-1][0] else make().of(victims)
            other = stage.basis != own.basis
            kept = trace.keeping(iterates.keeper(stage, victims, done))
            with kept, progress.part(done / self.steps, (done + most) / self.steps):
                cuts = replace(race, done=done) if race and stage is own else None
                parts.append(self.optimizer.minimize(stage, stage.join(*own.split(z)) if other else z, most, cuts))
            z, done = parts[-1].z, done + most
            z = own.join(*stage.split(z)) if other else z
        taken, evaluations = (torch.stack([getattr(p, k) for p in parts]).sum(0) for k in ("steps", "evaluations"))
        return Solution(z, parts[-1].loss, taken, evaluations, parts[-1].ended)


def _easier(problem: Matching, stage: Stage) -> Matching:
    """The problem as a stage has it."""
    part = (problem.head_only() or problem) if stage.head else problem
    part = part.under(stage.prior, stage.objective)
    return part if stage.block == 1 else part.in_basis(Blocks(stage.block))


def _spawn(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """One generator a victim, so that a victim's draws do not depend on its neighbors'."""
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]
