"""The forward operator: it computes a client's update, and attackers differentiate through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Tensors, Update, Weights
from medpfl.federated.draws import Draws, index_of
from medpfl.federated.kernels import differentiable_kernels
from medpfl.federated.losses import cross_entropy, loss_of
from medpfl.federated.ready import check_separable, running_statistics, state_of, track_statistics

__all__ = ["cross_entropy", "joined", "local_update"]

GradientMoment = Callable[[Tensors], Tensors]
Total = Callable[[Iterator[Tensors]], Tensors]

_MOST_IMAGES, _MOST_NUMBERS = 64, 2**25
"""Limits for one part of a batch's per-sample gradients; 2**25 elements in float32 take 128 MiB."""


def local_update(
    model: nn.Module,
    batch: Batch,
    plan: Plan,
    weights: Weights,
    draws: Draws | None = None,
    *,
    moment: GradientMoment | None = None,
    total: Total | None = None,
    buffers: bool = False,
) -> Update:
    """Compute one client's update, differentiable with respect to images and labels, and compatible with ``vmap``.

    Args:
        model: model from `medpfl.federated.ready.prepare`; its own weights are not used.
        batch: images (N, C, H, W) in [0, 1] with labels (N,) or label probabilities (N, K), or with segmentation masks
            (N, H, W) or (N, K, H, W).
        plan: FedSGD gives the gradient of the loss on the batch. FedAvg gives the weight difference after
            ``plan.steps`` steps with momentum and weight decay, as in ``torch.optim.SGD``. Under Poisson sampling
            without draws, each step is the expected one, over all images.
        weights: the global model's weights.
        draws: the client's batch order and dropout masks; ``None``: the given order, no dropout.
        moment: function applied to each step's per-sample gradients (n, ...) before their sum is divided by the batch
            size; for an empty batch it receives one row of zeros.
        total: function that computes this sum itself from parts of the per-sample gradients, so that they need not all
            be in memory.
        buffers: whether to return the batch-norm statistics after the round too.

    Raises:
        InputError: if `moment` or `total` is given, but the model's images do not have gradients of their own.
    """
    draws = draws or Draws()
    if moment is not None:
        total = _total_of(moment)
    if total is not None:
        check_separable(model)
    if not buffers:
        return Update(_tensors(model, batch, plan, weights, draws, total), _kind(plan))
    with track_statistics(model) as seen:
        tensors = _tensors(model, batch, plan, weights, draws, total)
    return Update(tensors, _kind(plan), running_statistics(model, weights.buffers, seen))


def _kind(plan: Plan) -> Any:
    return "gradient" if plan.algorithm == "FedSGD" else "difference"


def _tensors(
    model: nn.Module, batch: Batch, plan: Plan, weights: Weights, draws: Draws, total: Total | None
) -> Tensors:
    state = state_of(model, weights.buffers)

    def gradient(parameters: Tensors, step: int) -> Tensors:
        part, masks, size = _minibatch(batch, plan, draws, step)
        if not len(part) and total is None:
            return {name: torch.zeros_like(p) for name, p in parameters.items()}
        whole = _gradient(model, parameters, state, masks, part, total, loss_of(plan))
        return whole if size is None else {name: g * (max(len(part), 1) / size) for name, g in whole.items()}

    if plan.algorithm == "FedSGD":
        return gradient(weights.parameters, 0)
    parameters, velocity = dict(weights.parameters), {}
    for step in range(plan.steps):
        slope = gradient(parameters, step)
        after = {k: plan.stepped(step, old, slope[k], velocity.get(k)) for k, old in parameters.items()}
        parameters, velocity = ({k: pair[i] for k, pair in after.items()} for i in (0, 1))
    return {name: parameters[name] - old for name, old in weights.parameters.items()}


def _minibatch(batch: Batch, plan: Plan, draws: Draws, step: int) -> tuple[Batch, Tensors, int | None]:
    """Return a step's images, its masks, and the divisor for the gradients' sum; ``None``: the number of images."""
    masks = draws.at(step)
    if draws.chosen is not None:
        index: Any = draws.chosen[step].nonzero()[:, 0].to(batch.images.device)
        return Batch(batch.images[index], batch.labels[index]), {k: m[index] for k, m in masks.items()}, plan.batch_size
    index = slice(None) if plan.sampling == "poisson" else index_of(plan, draws.order, step)
    if plan.size_of(step) < plan.batch_size:
        whole = plan.batch_size
        masks = {k: m[: len(m) * plan.size_of(step) // whole] for k, m in masks.items()}
    return Batch(batch.images[index], batch.labels[index]), masks, None


def _gradient(
    model: nn.Module,
    parameters: Tensors,
    state: Tensors,
    masks: Tensors,
    batch: Batch,
    total: Total | None,
    criterion: Callable[[Tensor, Tensor], Tensor],
) -> Tensors:
    """Return the mean gradient, or `total` divided by the number of images (by 1 if there are none)."""

    def loss(parameters: Tensors, images: Tensor, labels: Tensor, masks: Tensors) -> Tensor:
        with differentiable_kernels():
            return criterion(functional_call(model, {**parameters, **state, **masks}, (images,)), labels)

    if total is None:
        return grad(loss)(dict(parameters), batch.images, batch.labels, masks)
    each = vmap(grad(loss), in_dims=(None, 0, 0, 0), randomness="different")

    def parts() -> Iterator[Tensors]:
        for images, labels, *own in zip(*(t.split(size) for t in rows), strict=True):
            yield each(dict(parameters), images, labels, dict(zip(masks, own, strict=True)))

    size, rows = _part_size(parameters), (batch.images[:, None], batch.labels[:, None], *masks.values())
    nothing = {name: torch.zeros_like(p)[None] for name, p in parameters.items()}
    summed = total(parts() if len(batch) else iter([nothing]))
    return {name: value / max(len(batch), 1) for name, value in summed.items()}


def _part_size(parameters: Tensors) -> int:
    """Return how many images' gradients are in memory at once; it depends only on the model."""
    return max(1, min(_MOST_IMAGES, _MOST_NUMBERS // sum(p.numel() for p in parameters.values())))


def _total_of(moment: GradientMoment) -> Total:
    """Return a `Total` that passes all gradients to a moment at once and sums its result over the images."""

    def total(parts: Iterator[Tensors]) -> Tensors:
        return {name: value.sum(0) for name, value in moment(joined(parts)).items()}

    return total


def joined(parts: Iterator[Tensors]) -> Tensors:
    """Concatenate parts (n, ...) of the per-sample gradients to (N, ...)."""
    rows = list(parts)
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]} if len(rows) > 1 else rows[0]
