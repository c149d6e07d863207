"""The attacks as their papers describe them: one image at a time, torch's L-BFGS without a line search.

Written after Zhu et al. 2019, Zhao et al. 2020 and Wei et al. 2020: 300 calls of ``torch.optim.LBFGS(lr=1)`` with
its 20 iterations each, on the plain squared distance between gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

CALLS = 300


@dataclass(frozen=True)
class Outcome:
    """A guess (C, H, W), evaluations of the objective, and its last value relative to the sent gradient."""

    guess: Tensor
    evaluations: int
    loss: float


def textbook(
    network: nn.Module, sent: list[Tensor], start: Tensor, label: Tensor | None, classes: int, stop: float
) -> Outcome:
    """Invert one gradient.

    Args:
        network: the model, in the client's mode.
        sent: its gradient for each parameter.
        start: initial image (1, C, H, W).
        label: inferred label (1,), or ``None`` to optimize a soft label with the image.
        classes: number of classes K.
        stop: relative squared distance at which the attack ends early, the same for all methods.
    """
    image = start.clone().requires_grad_()
    soft = torch.randn(1, classes).requires_grad_() if label is None else None
    variables = [image] if soft is None else [image, soft]
    optimizer = torch.optim.LBFGS(variables, lr=1)
    scale = float(sum(s.square().sum() for s in sent))
    evaluations, last = 0, float("inf")

    def closure() -> Tensor:
        nonlocal evaluations, last
        optimizer.zero_grad()
        target = label if soft is None else soft.softmax(1)
        assert target is not None
        loss = nn.functional.cross_entropy(network(image), target)
        fake = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
        distance = sum(((f - s).square().sum() for f, s in zip(fake, sent, strict=True)), torch.zeros(()))
        distance.backward()
        evaluations, last = evaluations + 1, float(distance.detach()) / scale
        return distance

    for _ in range(CALLS):
        optimizer.step(closure)
        if not last >= stop:  # also when it is not a number
            break
    return Outcome(image.detach()[0], evaluations, last)
