"""The forward operator: what a client computes, and what an attacker differentiates through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Tensors, Update, Weights
from medpfl.federated.draws import Draws, index_of
from medpfl.federated.kernels import differentiable_kernels
from medpfl.federated.losses import LOSSES, cross_entropy
from medpfl.federated.ready import check_separable, running_statistics, state_of, track_statistics

__all__ = ["cross_entropy", "local_update"]

GradientMoment = Callable[[Tensors], Tensors]


def local_update(
    model: nn.Module,
    batch: Batch,
    plan: Plan,
    weights: Weights,
    draws: Draws | None = None,
    *,
    moment: GradientMoment | None = None,
    buffers: bool = False,
) -> Update:
    """The update of one client, differentiable with respect to images and labels, and open to ``vmap``.

    Args:
        model: from `medpfl.federated.ready.prepare`; its own weights are not used.
        batch: images (N, C, H, W) in [0, 1] with labels (N,) or label probabilities (N, K); or masks,
            (N, H, W) or (N, K, H, W).
        plan: FedSGD: the gradient of the loss on the batch. FedAvg: the difference of weights after
            ``plan.steps`` steps of SGD with momentum and weight decay, as ``torch.optim.SGD`` makes them. Under
            Poisson sampling and without draws, each step is the expected one: of all images.
        weights: the global model.
        draws: the client's batch order and dropout masks; ``None``: the images in their order, no dropout.
        moment: applied to the per-sample gradients (n, ...) of each step before their sum is divided by the
            batch size; of an empty batch it gets one row of zeros.
        buffers: whether to return the batch-norm statistics after the round too.

    Raises:
        InputError: a moment on a model whose images do not have gradients of their own.
    """
    draws = draws or Draws()
    if moment is not None:
        check_separable(model)
    if not buffers:
        return Update(_tensors(model, batch, plan, weights, draws, moment), _kind(plan))
    with track_statistics(model) as seen:
        tensors = _tensors(model, batch, plan, weights, draws, moment)
    return Update(tensors, _kind(plan), running_statistics(model, weights.buffers, seen))


def _kind(plan: Plan) -> Any:
    return "gradient" if plan.algorithm == "FedSGD" else "difference"


def _tensors(
    model: nn.Module, batch: Batch, plan: Plan, weights: Weights, draws: Draws, moment: GradientMoment | None
) -> Tensors:
    state = state_of(model, weights.buffers)

    def gradient(parameters: Tensors, step: int) -> Tensors:
        part, masks, size = _minibatch(batch, plan, draws, step)
        if not len(part) and moment is None:
            return {name: torch.zeros_like(p) for name, p in parameters.items()}
        whole = _gradient(model, parameters, state, masks, part, moment, LOSSES[plan.loss])
        return whole if size is None else {name: g * (max(len(part), 1) / size) for name, g in whole.items()}

    if plan.algorithm == "FedSGD":
        return gradient(weights.parameters, 0)
    parameters, velocity = dict(weights.parameters), {}
    for step in range(plan.steps):
        slope = gradient(parameters, step)
        for name, old in parameters.items():
            push = slope[name] + plan.weight_decay * old
            velocity[name] = push if step == 0 else plan.momentum * velocity[name] + push
        parameters = {name: old - plan.learning_rate * velocity[name] for name, old in parameters.items()}
    return {name: parameters[name] - old for name, old in weights.parameters.items()}


def _minibatch(batch: Batch, plan: Plan, draws: Draws, step: int) -> tuple[Batch, Tensors, int | None]:
    """A step's images and masks, and what their sum is divided by; ``None``: their number."""
    masks = draws.at(step)
    if draws.chosen is not None:
        index: Any = draws.chosen[step].nonzero()[:, 0].to(batch.images.device)
        return Batch(batch.images[index], batch.labels[index]), {k: m[index] for k, m in masks.items()}, plan.batch_size
    index = slice(None) if plan.sampling == "poisson" else index_of(plan, draws.order, step)
    return Batch(batch.images[index], batch.labels[index]), masks, None


def _gradient(
    model: nn.Module,
    parameters: Tensors,
    state: Tensors,
    masks: Tensors,
    batch: Batch,
    moment: GradientMoment | None,
    criterion: Callable[[Tensor, Tensor], Tensor],
) -> Tensors:
    """The mean gradient (after the moment); of no images, the mean of the moment's one row."""

    def loss(parameters: Tensors, images: Tensor, labels: Tensor, masks: Tensors) -> Tensor:
        with differentiable_kernels():
            return criterion(functional_call(model, {**parameters, **state, **masks}, (images,)), labels)

    if moment is None:
        return grad(loss)(dict(parameters), batch.images, batch.labels, masks)
    each = vmap(grad(loss), in_dims=(None, 0, 0, 0), randomness="different")
    if len(batch):
        samples = each(dict(parameters), batch.images[:, None], batch.labels[:, None], masks)
    else:
        samples = {name: torch.zeros_like(p)[None] for name, p in parameters.items()}
    return {name: value.mean(0) for name, value in moment(samples).items()}
