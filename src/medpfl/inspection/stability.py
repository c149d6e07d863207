"""Stability of a client's local steps: how much they enlarge a small change of the weights."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Tensors, Weights
from medpfl.core.user_code.strangers import explained
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.runs.environment import generator_of

__all__ = ["UNSTABLE", "growth_of_changes"]

UNSTABLE = 2.0
"""Growth above which local steps count as unstable. Steps that train have 0.8 to 1.8
(benchmarks/results/local_steps.md)."""

_STEPS, _TRIES = 8, 2
"""Largest number of steps that are tried, and number of sets of made-up images."""

_SMALL, _COARSE = 1e-6, 4


def growth_of_changes(network: nn.Module, image_shape: tuple[int, ...], outputs: int, plan: Plan) -> float | None:
    """Return how many times larger a small change of the weights is after all local steps than before them.

    The change is one that a step makes if its images change a little. The images are made up. If it grows, the learning
    rate is too high for the loss's curvature: steps overshoot, and a small error in a search's guess of one image
    becomes a large one in all later steps.

    Args:
        network: the model, which predicts one class per image.
        image_shape: (C, H, W) or (C, D, H, W).
        outputs: number of logits.
        plan: the client's plan. At most its first 8 steps are tried.

    Returns:
        The largest growth over two tries; ``None`` for fewer than two steps, under Poisson sampling, or if the model
        cannot run in float64.
    """
    if plan.steps < 2 or plan.sampling == "poisson":
        return None
    few = plan if plan.batches == 1 else replace(plan, local_images=min(plan.images, _STEPS * plan.batch_size))
    few = replace(few, epochs=min(plan.epochs, max(1, _STEPS // few.batches)))
    first = replace(plan, local_images=plan.batch_size, epochs=1)
    with suppress(InputError), explained("it cannot be computed in float64"):
        ready = prepare(network, plan).double()
        return max(_growth(ready, image_shape, outputs, few, first, number) for number in range(_TRIES))
    return None


def _growth(
    ready: nn.Module, image_shape: tuple[int, ...], outputs: int, plan: Plan, first: Plan, number: int
) -> float:
    """Return the growth for one set of images, with the plan of all steps and that of the first one."""
    weights, generator = Weights.of(ready), generator_of(number, "stability")
    like = next(iter(weights.parameters.values()))
    images = _smooth((plan.images, *image_shape), generator).to(like)
    labels = torch.randint(outputs, (plan.images,), generator=generator).to(like.device)
    own = images[: first.images]
    other = own + _SMALL * torch.randn(own.shape, generator=generator, dtype=torch.float64).to(like)

    def after(plan: Plan, images: Tensor, before: Tensors) -> dict[str, Tensor]:
        batch, start = Batch(images, labels[: len(images)]), Weights(before, weights.buffers)
        return {k: before[k] + t for k, t in local_update(ready, batch, plan, start).tensors.items()}

    with torch.no_grad():
        one, changed = (after(first, x, weights.parameters) for x in (own, other))
        moved = {k: t + changed[k] - one[k] for k, t in weights.parameters.items()}
        ends = (after(plan, images, before) for before in (weights.parameters, moved))
        return _distance(*ends) / max(_distance(weights.parameters, moved), 1e-30)


def _smooth(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return images in [0, 1] that differ in their large parts, as real ones do. Batch norm would magnify noise."""
    coarse = torch.rand(*shape[:2], *[min(_COARSE, side) for side in shape[2:]], generator=generator)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[len(shape)]
    return functional.interpolate(coarse, size=shape[2:], mode=mode)


def _distance(one: Tensors, other: Tensors) -> float:
    return float(torch.stack([(one[k] - other[k]).square().sum() for k in one]).sum().sqrt())
