"""The engine's own overhead over the floor, on a ResNet-18.

The floor is what no gradient matching can do without, written by hand with plain autograd: the network's gradient,
the direction of the cosine in the space of its weights, and the derivative of the gradient along it with respect to
the image. Ours is a whole step: the same through `Matching`, total variation, the signed Adam, the box. All are
timed in turns, and the median of the rounds' ratios is told, with its quartiles.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.rows import now
from benchmarks.scenes import Scene
from medpfl.attacks.matching.constraints import Box
from medpfl.attacks.matching.objectives import Cosine
from medpfl.attacks.matching.priors import TotalVariation
from medpfl.attacks.matching.problem import Matching
from medpfl.attacks.optimize.optimizer import SignedAdam


class Floor:
    """Gradient, direction and second differentiation for one update."""

    def __init__(self, case: Scene) -> None:
        self.network, self.label = case.network, case.labels[0]
        self.parameters = list(case.network.parameters())
        tensors = case.seen.views[0].update.tensors
        self.sent = [tensors[name][0] for name, _ in case.network.named_parameters()]
        self.size = torch.stack(torch._foreach_norm(self.sent)).norm()  # pyright: ignore[reportPrivateImportUsage]
        self.parts = [float("inf")] * 3

    def __call__(self, image: Tensor) -> Tensor:
        """The gradient of the cosine distance with respect to an image (1, C, H, W)."""
        marks = [now()]
        z = image.clone().requires_grad_()
        loss = nn.functional.cross_entropy(self.network(z), self.label)
        fake = torch.autograd.grad(loss, self.parameters, create_graph=True)
        marks.append(now())
        along = self._direction([f.detach() for f in fake])
        marks.append(now())
        slope = torch.autograd.grad(fake, z, along)[0]
        marks.append(now())
        spent = [b - a for a, b in pairwise(marks)]
        self.parts = [min(a, b) for a, b in zip(self.parts, spent, strict=True)]
        return slope

    def _direction(self, fake: list[Tensor]) -> list[Tensor]:
        """Of 1 - cos(fake, sent) with respect to fake."""
        size = torch.stack(torch._foreach_norm(fake)).norm()  # pyright: ignore[reportPrivateImportUsage]
        dot = torch.stack([torch.dot(f.flatten(), s.flatten()) for f, s in zip(fake, self.sent, strict=True)]).sum()
        along = torch._foreach_add(self.sent, fake, alpha=float(-dot / size**2))  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(along, float(-1 / (size * self.size)))  # pyright: ignore[reportPrivateImportUsage]
        return list(along)


def matching(case: Scene, tv: float) -> Matching:
    """The engine's problem on one update whose label is known as a class, as the floor knows it."""
    hard = nn.functional.one_hot(case.labels, case.classes).float()
    return Matching(case.seen, hard, Cosine(), TotalVariation(tv), Box())


def disagreement(case: Scene, image: Tensor) -> float:
    """Relative distance of the engine's slope to the floor's at an image (1, C, H, W)."""
    theirs = Floor(case)(image).flatten()
    ours = matching(case, 0.0).evaluate(image.flatten(1), torch.tensor([0]))[1][0]
    return float((ours - theirs).norm() / theirs.norm())


def seconds(act: Callable[[], object]) -> float:
    """Of one call."""
    began = now()
    act()
    return now() - began


def overhead(case: Scene, rounds: int = 20, steps: int = 1) -> str:
    """The line of the report. `case` holds one update of one image.

    Each round times all three in turns, and gives one ratio: what others do on the machine meets both sides of it.
    """
    image = torch.rand(case.truths.shape, generator=torch.Generator().manual_seed(0))
    apart = disagreement(case, image)
    floor, problem = Floor(case), matching(case, 0.1)
    bare, alone, whole = (torch.empty(rounds, dtype=torch.float64) for _ in range(3))
    for i in range(rounds):
        before = seconds(lambda: floor(image))
        search = seconds(lambda: SignedAdam().minimize(problem, image.flatten(1), steps))
        alone[i] = seconds(lambda: problem.evaluate(image.flatten(1), torch.tensor([0])))
        whole[i] = (search - alone[i]) / steps  # it evaluates once more than it steps
        bare[i] = (before + seconds(lambda: floor(image))) / 2
    gradient, direction, second = (1000 * part for part in floor.parts)
    low, middle, high = 100 * (whole / bare - 1).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    least = 100 * (whole.min() / bare.min() - 1)
    return (
        f"overhead: floor {1000 * bare.median():.1f} ms (least: gradient {gradient:.1f}, direction {direction:.1f}, "
        f"second differentiation {second:.1f}); Matching.evaluate {1000 * alone.median():.1f} ms; a whole step "
        f"{1000 * whole.median():.1f} ms; over the floor {middle:+.1f} % (median of {rounds} rounds in turns, "
        f"quartiles {low:+.1f} and {high:+.1f}; least against least {least:+.1f}); the two slopes differ by {apart:.1e}"
    )
