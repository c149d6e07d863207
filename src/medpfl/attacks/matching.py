"""Gradient matching: look for images whose update is the one that was sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from medpfl.attacks.constraints import Box, Constraint, Free
from medpfl.attacks.labels import Joint, Labels, LastLayer
from medpfl.attacks.lbfgs import LBFGS
from medpfl.attacks.objectives import Cosine, Objective, SquaredDistance
from medpfl.attacks.optimizers import Optimizer, SignedAdam, Solution
from medpfl.attacks.priors import NoPrior, Prior, TotalVariation
from medpfl.attacks.starts import Normal, Patterned, Start
from medpfl.core.errors import InputError
from medpfl.core.roles import Attack
from medpfl.core.types import Batch, Observation, Reconstruction, Tensors, View
from medpfl.federated.draws import Draws
from medpfl.federated.local import local_update

__all__ = [
    "LBFGS",
    "Box",
    "Cosine",
    "Free",
    "GradientMatching",
    "Joint",
    "LastLayer",
    "NoPrior",
    "Normal",
    "Patterned",
    "SignedAdam",
    "SquaredDistance",
    "TotalVariation",
]

STACKED_PARAMETERS = 2_000_000
"""Up to so many parameters victims are evaluated together on a CPU. Above, they gain nothing by it."""


@dataclass(frozen=True, repr=False)
class GradientMatching(Attack):
    """Minimizes, over images (and soft labels), the distance of their update from the sent one.

    The attacker differentiates through the same `local_update` that the client called, in every view of
    the observation. What the `medpfl.core.types.Channel` of a view says is used where it is granted.

    Attributes:
        objective: distance of updates.
        prior: what images look like.
        optimizer: how to minimize.
        start: first guess.
        labels: how labels are found, unless they are granted.
        constraint: what every iterate must be; for optimizers that project.
        restarts: independent starts; the one with the least objective is the guess.
        steps: at most so many, each start.
    """

    objective: Objective = SquaredDistance()
    prior: Prior = NoPrior()
    optimizer: Optimizer = LBFGS()
    start: Start = Normal()
    labels: Labels = LastLayer()
    constraint: Constraint = Free()
    restarts: int = 1
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.steps < 1:
            raise InputError("restarts and steps must be at least 1")

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """The attack on every victim of the observation."""
        victims, device = len(seen), next(iter(seen.views[0].update.tensors.values())).device
        shape = (seen.num_images, *seen.image_shape)
        own = _spawn(generator, victims)
        starts = torch.stack([self.start(shape, g) for g in own for _ in range(self.restarts)]).to(device)
        labels = seen.labels if seen.labels is not None else self.labels.infer(seen, starts[:64, 0])
        soft = None
        if labels is None:
            size = (shape[0], seen.num_classes)
            soft = torch.stack([torch.randn(size, generator=g) for g in own for _ in range(self.restarts)]).to(device)
        problem = Matching(self, seen, labels)
        solution = self.optimizer.minimize(problem, problem.join(starts, soft), self.steps)
        return self._choose(problem, solution, labels)

    def _choose(self, problem: Matching, solution: Solution, labels: Tensor | None) -> Reconstruction:
        """Of each victim's restarts the one with the least objective first."""
        by_victim = solution.loss.nan_to_num(torch.inf).view(-1, self.restarts)
        order = by_victim.argsort(dim=1, stable=True)
        best = order[:, 0] + self.restarts * torch.arange(len(order), device=order.device)
        images, soft = problem.split(solution.z)
        candidates = images.unflatten(0, by_victim.shape)
        candidates = candidates[torch.arange(len(order), device=order.device)[:, None], order].clamp(0, 1)
        chosen = best.cpu()
        return Reconstruction(
            guesses=candidates[:, 0],
            labels=soft[best].argmax(2) if soft is not None else labels,
            loss=solution.loss[best],
            steps=solution.steps[chosen],
            evaluations=solution.evaluations.view(-1, self.restarts).sum(1),
            ended=tuple(solution.ended[i] for i in chosen.tolist()),
            candidates=candidates if self.restarts > 1 else None,
        )


def _spawn(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """One generator a victim, so that a victim's draws do not depend on its neighbors'."""
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Matching:
    """The problems of an observation, one a restart of a victim, over flat variables.

    A row's variables are its images (N, C, H, W) and, where labels are optimized, logits (N, K).
    """

    def __init__(self, parts: GradientMatching, seen: Observation, labels: Tensor | None) -> None:
        self.parts, self.seen, self.joint = parts, seen, labels is None
        self.shape = (seen.num_images, *seen.image_shape)
        self.pixels = torch.Size(self.shape).numel()
        self.known = _known(seen, labels)
        self.stacked = stacks(seen)
        self._last: tuple[Tensor, Any] | None = None

    def join(self, images: Tensor, logits: Tensor | None) -> Tensor:
        """Flat variables (rows, D)."""
        parts = [images.flatten(1)] + ([] if logits is None else [logits.flatten(1)])
        return torch.cat(parts, 1)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (rows, N, C, H, W) and logits (rows, N, K)."""
        images = z[..., : self.pixels].unflatten(-1, self.shape)
        if not self.joint:
            return images, None
        return images, z[..., self.pixels :].unflatten(-1, (self.shape[0], self.seen.num_classes))

    def project(self, z: Tensor, step: int) -> Tensor:
        """The constraint on the images; logits are free."""
        images = self.parts.constraint(self.split(z)[0], step).flatten(1)
        return torch.cat([images, z[:, self.pixels :]], 1)

    def evaluate(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values (A,) and gradients (A, D) of the rows."""
        # The fused attention kernels have no second derivative. `grad` sees no `no_grad` around it; it only
        # spares the graph that plain autograd would keep of the model's own parameters.
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            if self.stacked:
                return vmap(self._one, randomness="different")(z, self._of(rows))
            victims = (rows // self.parts.restarts).tolist()
            each = [self._one(z[i], _pick(self.known, v)) for i, v in enumerate(victims)]
        return torch.stack([e[0] for e in each]), torch.stack([e[1] for e in each])

    def _of(self, rows: Tensor) -> Any:
        """What is known of the rows' victims; copied only when the rows change."""
        if self._last is None or self._last[0] is not rows:
            whole = self.parts.restarts == 1 and len(rows) == len(self.seen)
            self._last = (rows, self.known if whole else _pick(self.known, rows // self.parts.restarts))
        return self._last[1]

    def _one(self, z: Tensor, known: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Value and gradient for one row."""

        def surrogate(z: Tensor) -> tuple[Tensor, Tensor]:
            """Has the objective's gradient, by a fixed direction in the space of updates; and its value."""
            pull = total = self.parts.prior(self.split(z)[0])
            for view, of_view in zip(self.seen.views, known["views"], strict=True):
                fake = self._update(z, view, known)
                value, direction = self.parts.objective.value_and_direction(
                    {name: t.detach() for name, t in fake.items()},
                    of_view["sent"],
                    of_view.get("precision"),
                    of_view.get("bounds"),
                )
                total = total + value
                pull = pull + sum((fake[name] * along).sum() for name, along in direction.items())
            return pull, total.detach()

        slope, total = grad(surrogate, has_aux=True)(z)
        return total, slope

    def _update(self, z: Tensor, view: View, known: dict[str, Any]) -> Tensors:
        images, logits = self.split(z)
        labels = known["labels"] if logits is None else logits.softmax(-1)
        draws = Draws(known.get("order"), known.get("masks", {}))
        update = local_update(self.seen.model, Batch(images, labels), view.plan, view.weights, draws).tensors
        return dict(view.channel.apply(update)) if view.channel is not None else dict(update)


def stacks(seen: Observation) -> bool:
    """Whether the victims of an observation are evaluated together, by ``vmap``, or one after the other."""
    parameters = seen.views[0].weights.parameters.values()
    on_cpu = next(iter(parameters)).device.type == "cpu"
    return not on_cpu or sum(p.numel() for p in parameters) <= STACKED_PARAMETERS


def _known(seen: Observation, labels: Tensor | None) -> dict[str, Any]:
    """All that differs between victims, with a leading victim axis."""
    views = []
    for view in seen.views:
        known: dict[str, Any] = {"sent": dict(view.update.tensors)}
        if view.channel is not None and view.channel.precision is not None:
            known["precision"] = dict(view.channel.precision)
        if view.channel is not None and view.channel.bounds is not None:
            known["bounds"] = dict(view.channel.bounds)
        views.append(known)
    rest: dict[str, Any] = {"views": views}
    if labels is not None:
        rest["labels"] = labels
    if seen.order is not None:
        rest["order"] = seen.order
    if seen.masks is not None:
        rest["masks"] = dict(seen.masks)
    return rest


def _pick(tree: Any, index: Tensor | int) -> Any:
    """The same tree with every tensor indexed along its victim axis; a number makes no copy."""
    if isinstance(tree, Tensor):
        return tree[index]
    if isinstance(tree, Mapping):
        return {key: _pick(value, index) for key, value in tree.items()}
    return [_pick(value, index) for value in tree]
