"""The engine's overhead over a hand-written floor, on a ResNet-18.

The floor is the minimum work for gradient matching, written in plain autograd: the network's gradient, the derivative
of the cosine distance with respect to it, and the second differentiation down to the image. The engine's side is a full
step: the same work through `Matching`, plus total variation, signed Adam and the box constraint. Both sides are timed
in turns. The report gives the median and the quartiles of the rounds' ratios.
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
        """Return the gradient of the cosine distance with respect to an image (1, C, H, W)."""
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
        """Return the derivative of 1 - cos(fake, sent) with respect to fake."""
        size = torch.stack(torch._foreach_norm(fake)).norm()  # pyright: ignore[reportPrivateImportUsage]
        dot = torch.stack([torch.dot(f.flatten(), s.flatten()) for f, s in zip(fake, self.sent, strict=True)]).sum()
        along = torch._foreach_add(self.sent, fake, alpha=float(-dot / size**2))  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(along, float(-1 / (size * self.size)))  # pyright: ignore[reportPrivateImportUsage]
        return list(along)


def matching(case: Scene, tv: float) -> Matching:
    """Return the engine's problem for one update. Its label is given as a class, as for the floor."""
    hard = nn.functional.one_hot(case.labels, case.classes).float()
    return Matching(case.seen, hard, Cosine(), TotalVariation(tv), Box())


def disagreement(case: Scene, image: Tensor) -> float:
    """Return the relative distance between the engine's and the floor's derivatives at an image (1, C, H, W)."""
    theirs = Floor(case)(image).flatten()
    ours = matching(case, 0.0).evaluate(image.flatten(1), torch.tensor([0]))[1][0]
    return float((ours - theirs).norm() / theirs.norm())


def seconds(act: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    began = now()
    act()
    return now() - began


def overhead(case: Scene, rounds: int = 20, steps: int = 1) -> str:
    """Return the report line. `case` holds one update from one image.

    Each round times the floor, one evaluation and a full step in turns, and gives one ratio. Other load on the machine
    then affects both sides.
    """
    image = torch.rand(case.truths.shape, generator=torch.Generator().manual_seed(0))
    apart = disagreement(case, image)
    floor, problem = Floor(case), matching(case, 0.1)
    bare, alone, whole = (torch.empty(rounds, dtype=torch.float64) for _ in range(3))
    for i in range(rounds):
        before = seconds(lambda: floor(image))
        search = seconds(lambda: SignedAdam().minimize(problem, image.flatten(1), steps))
        alone[i] = seconds(lambda: problem.evaluate(image.flatten(1), torch.tensor([0])))
        whole[i] = (search - alone[i]) / steps  # a search evaluates once more than it steps
        bare[i] = (before + seconds(lambda: floor(image))) / 2
    gradient, direction, second = (1000 * part for part in floor.parts)
    low, middle, high = 100 * (whole / bare - 1).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    least = 100 * (whole.min() / bare.min() - 1)
    return (
        f"overhead: floor {1000 * bare.median():.1f} ms (minimum: gradient {gradient:.1f}, direction {direction:.1f}, "
        f"second differentiation {second:.1f}); Matching.evaluate {1000 * alone.median():.1f} ms; a full step "
        f"{1000 * whole.median():.1f} ms; over the floor {middle:+.1f} % (median of {rounds} rounds in turns, "
        f"quartiles {low:+.1f} and {high:+.1f}; minimum to minimum {least:+.1f}); derivatives differ by {apart:.1e}"
    )
