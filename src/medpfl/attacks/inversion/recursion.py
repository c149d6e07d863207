"""The image behind one gradient, layer by layer from the first linear layer back, without a search."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medpfl.attacks.inversion.chain import Chain, chain_of
from medpfl.attacks.inversion.layers import Estimate, Wire, noise_of
from medpfl.attacks.optimize.stacks import pick
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Observation

__all__ = ["Inverted", "check_plans", "invert"]

_TOGETHER = 64
"""Number of victims solved at once. At 32 pixels, a LeNet takes a few MB for each."""


class Inverted(NamedTuple):
    """An inversion's result.

    Attributes:
        images: (V, 1, C, H, W) in float64, not clamped; not finite where there is no solution.
        steps: (V,) iterations in the layer with the most.
        total: (V,) iterations in all layers and probes.
    """

    images: Tensor
    steps: Tensor
    total: Tensor


def check_plans(plans: tuple[Plan, ...], batches: bool = False) -> None:
    """Raise `InputError` for an update that is not the gradient of a single image, or, with `batches`, of one batch."""
    reason, plan = None, plans[0]
    if len(plans) > 1:
        reason = f"a sum over {len(plans)} clients"
    elif plan.images > 1 and not batches:
        reason = f"an update of {plan.images} images: gradients sum over images"
    elif plan.steps > 1:
        reason = f"an update of {plan.steps} steps: each step has its own gradient"
    elif plan.algorithm == "FedAvg" and plan.weight_decay:
        reason = "weight decay"
    if reason:
        needed = "one batch" if batches else "one image"
        raise InputError(f"an analytic attack needs one gradient of {needed}, not {reason}; attack with iDLG")


def invert(seen: Observation, generator: torch.Generator, steps: int, tolerance: float) -> Inverted:
    """Return images from an observation's first view.

    Args:
        seen: observation.
        generator: generator for made-up images and for the probes that measure errors.
        steps, tolerance: settings of each layer's least squares.

    Raises:
        InputError: The plan or the model does not allow it. The message names the layer and the reason.
    """
    view = seen.views[0]
    check_plans(view.plans)
    chain = chain_of(seen.model, view.weights, seen.image_shape, generator)
    own = int(torch.randint(2**62, (1,), generator=generator))
    parts = [
        _some(seen, chain, rows, torch.Generator().manual_seed(own), steps, tolerance)
        for rows in torch.arange(len(seen)).split(_TOGETHER)
    ]
    return Inverted(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _some(
    seen: Observation, chain: Chain, rows: Tensor, generator: torch.Generator, steps: int, tolerance: float
) -> Inverted:
    sent = seen.views[0].update.tensors
    epsilon = torch.finfo(next(iter(sent.values())).dtype).eps
    # A common factor, such as a local step's learning rate, cancels.
    gradients = {k: t.double() for k, t in pick(dict(sent), rows).items()}
    weight, pull = (gradients[f"{chain.entry.name}.{kind}"] for kind in ("weight", "bias"))
    none = torch.zeros(len(rows), dtype=torch.long, device=pull.device)
    wire = Wire(gradients, noise_of(weight, pull, epsilon), steps, tolerance, generator, [none])
    nothing = torch.zeros_like(pull)
    estimate = chain.entry.back(Estimate(nothing, nothing, pull, nothing), wire)
    for layer in reversed(chain.layers):
        estimate = layer.back(estimate, wire)
    taken = torch.stack(wire.taken)
    return Inverted(estimate.value.view(len(rows), 1, *seen.image_shape), taken.amax(0), taken.sum(0))
