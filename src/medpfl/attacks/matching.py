"""Gradient matching: look for images whose update is the one that was sent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medpfl.attacks.analytic import Analytic
from medpfl.attacks.bases import Basis, Blocks, Pixels, Spectral
from medpfl.attacks.constraints import Box, Constraint, Free
from medpfl.attacks.iterates import Iterates
from medpfl.attacks.labels import Joint, Labels, LastLayer
from medpfl.attacks.lbfgs import LBFGS
from medpfl.attacks.likelihood import Likelihood
from medpfl.attacks.objectives import Cosine, Objective, SquaredDistance
from medpfl.attacks.optimizers import Optimizer, SignedAdam, Solution
from medpfl.attacks.priors import ColorVariation, NoPrior, Prior, Smoothness, TotalVariation
from medpfl.attacks.problem import Matching
from medpfl.attacks.schedule import WARM_UP, Stage
from medpfl.attacks.starts import Normal, Patterned, Start
from medpfl.attacks.targets import label_vectors
from medpfl.core import progress, trace
from medpfl.core.errors import InputError
from medpfl.core.roles import Attack
from medpfl.core.types import Ended, Observation, Reconstruction

__all__ = [
    "LBFGS",
    "Analytic",
    "Blocks",
    "Box",
    "ColorVariation",
    "Cosine",
    "Free",
    "GradientMatching",
    "Joint",
    "LastLayer",
    "Likelihood",
    "NoPrior",
    "Normal",
    "Patterned",
    "Pixels",
    "SignedAdam",
    "Smoothness",
    "Spectral",
    "SquaredDistance",
    "Stage",
    "TotalVariation",
]

_LABEL_STEPS = 20


@dataclass(frozen=True, repr=False)
class GradientMatching(Attack):
    """Minimizes, over images (and labels), the distance of their update from the sent one.

    The attacker differentiates through the same `local_update` that the client called, in every view of
    the observation. What the `medpfl.core.types.Channel` of a view says is used where it is granted. Where the last
    layer has at least twice as many inputs as the image has pixels, and its update is its own, it is matched alone.

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
        largest: from the first tensor of more numbers than that on, the last layer's aside, the update is left out of
            the distance; 0: nothing is. A deep network has most of its weights where it sees the image coarsest: they
            take time and say little of pixels. Nothing is left out where the last layer's update is not its own (see
            `medpfl.attacks.schedule.Stage`).
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
    largest: int = 0
    enough: float = 1e-5
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.steps < 1:
            raise InputError(f"steps is {self.steps} and restarts {self.restarts}: both must be at least 1")

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """The attack on every victim of the observation."""
        own, start = _spawn(generator, len(seen)), self.start.of(seen, generator)
        shape, device = (seen.num_images, *seen.image_shape), _device(seen)
        dummy = torch.cat([start(shape, g) for g in own[:64]])[:64].to(device)
        classes = seen.labels if seen.labels is not None else self.labels.infer(seen, dummy)
        labels = None if classes is None else label_vectors(seen, classes, dummy[:1])
        problem = Matching(seen, labels, self.objective, self.prior, self.constraint, self.basis)
        found, iterates = _Starts(seen, self.restarts), Iterates(len(seen), self.steps)
        for attempt in range(self.restarts):
            victims = found.worse_than(self.enough if attempt else -torch.inf)
            if not len(victims):
                break
            images = start.images(shape, victims, own).to(device)
            z = problem.join(images, self._logits(seen, [own[v] for v in victims.tolist()]) if problem.joint else None)
            stages = self._stages(problem, start.rough)
            with progress.part(attempt / self.restarts, (attempt + 1) / self.restarts):
                stages = [(p.of(victims), n) for p, n in stages]
                found.add(attempt, victims, self._minimize(stages, z, iterates, victims))
            start = self.start.again()
        return replace(found.reconstruction(problem, classes), trace=iterates.stacked())

    def _logits(self, seen: Observation, own: list[torch.Generator]) -> Tensor:
        """Label variables (rows, N, K), of masks (rows, N, K, H, W)."""
        shape = (seen.num_images, seen.num_classes, *seen.label_shape)
        return torch.stack([torch.randn(shape, generator=g) for g in own]).to(_device(seen))

    def _stages(self, problem: Matching, rough: bool) -> list[tuple[Matching, int]]:
        """The warm-up's stages, if the start is rough, then the attack proper; with steps for each, at most all."""
        stages, warmup = [], self.warmup if rough else ()
        if problem.joint:  # wrong labels would bend the pixels before the labels are right
            stages.append((problem.labels_only(), min(_LABEL_STEPS, self.steps // 8)))
        problem = problem.up_to(self.largest) if self.largest else problem
        alone, head = problem.told_by_head(), problem
        if alone or any(stage.head for stage in warmup):
            head = problem.head_only() or problem
        for stage in warmup:
            part = (head if stage.head else problem).under(stage.prior, stage.objective)
            part = part if stage.block == 1 else part.in_basis(Blocks(stage.block))
            stages.append((part, stage.within(self.steps)))
        stages = [(p, most) for p, most in stages if most]
        return [*stages, (head if alone else problem, self.steps - sum(most for _, most in stages))]

    def _minimize(self, stages: list[tuple[Matching, int]], z: Tensor, iterates: Iterates, victims: Tensor) -> Solution:
        """One stage after the other; `z` is in the last one's basis, the attack's own."""
        parts, done, (own, _) = [], 0, stages[-1]
        for stage, most in stages:
            other = stage.basis != own.basis
            kept = trace.keeping(iterates.keeper(stage, victims, done))
            with kept, progress.part(done / self.steps, (done + most) / self.steps):
                parts.append(self.optimizer.minimize(stage, stage.join(*own.split(z)) if other else z, most))
            z, done = parts[-1].z, done + most
            z = own.join(*stage.split(z)) if other else z
        taken, evaluations = (torch.stack([getattr(p, k) for p in parts]).sum(0) for k in ("steps", "evaluations"))
        return Solution(z, parts[-1].loss, taken, evaluations, parts[-1].ended)


class _Starts:
    """What came of each start of each victim."""

    def __init__(self, seen: Observation, restarts: int) -> None:
        self.loss = torch.full((len(seen), restarts), torch.inf)
        self.z: list[Tensor] = []
        self.steps = torch.zeros(len(seen), restarts, dtype=torch.long)
        self.evaluations = torch.zeros(len(seen), dtype=torch.long)
        self.ended: dict[tuple[int, int], Ended] = {}

    def worse_than(self, loss: float) -> Tensor:
        """(A,) victims whose best objective so far is not below `loss`."""
        return (~(self.loss.amin(1) < loss)).nonzero()[:, 0]

    def add(self, attempt: int, victims: Tensor, solution: Solution) -> None:
        """One more start of some victims."""
        z = solution.z.new_zeros(len(self.loss), solution.z.shape[1]) if not self.z else self.z[0].clone()
        z[victims] = solution.z
        self.z.append(z)
        self.loss[victims, attempt] = solution.loss.nan_to_num(torch.inf).to(self.loss)
        self.steps[victims, attempt] = solution.steps
        self.evaluations[victims] += solution.evaluations
        self.ended |= {(v, attempt): why for v, why in zip(victims.tolist(), solution.ended, strict=True)}

    def reconstruction(self, problem: Matching, classes: Tensor | None) -> Reconstruction:
        """The start with the least objective as the guess, the others as candidates in that order."""
        order = self.loss[:, : len(self.z)].argsort(dim=1, stable=True)
        rows, best = torch.arange(len(order)), order[:, 0]
        images, free = problem.split(torch.stack(self.z, 1)[rows[:, None], order])
        images = images.clamp(0, 1)
        return Reconstruction(
            guesses=images[:, 0],
            labels=classes if free is None else free[:, 0].argmax(2),
            loss=self.loss[rows, best],
            steps=self.steps[rows, best],
            evaluations=self.evaluations,
            ended=tuple(self.ended[v, a] for v, a in enumerate(best.tolist())),
            candidates=images if len(self.z) > 1 else None,
            engine="vmap" if problem.together else "loop",
        )


def _device(seen: Observation) -> torch.device:
    return next(iter(seen.views[0].update.tensors.values())).device


def _spawn(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """One generator a victim, so that a victim's draws do not depend on its neighbors'."""
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]
