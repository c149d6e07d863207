"""What labels the private images have: inferred from the update, or optimized with the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medpfl.core.errors import InputError
from medpfl.core.spec import Part
from medpfl.core.types import Observation, Tensors
from medpfl.federated.ready import state_of

__all__ = ["Joint", "Labels", "LastLayer", "bias_gradient", "last_layer"]


@dataclass(frozen=True, repr=False)
class Labels(Part):
    """How an attack comes by the labels where they are not granted."""

    def infer(self, seen: Observation, dummy: Tensor) -> Tensor | None:
        """Classes (V, N), or ``None`` to optimize soft labels together with the images.

        Args:
            seen: the observation.
            dummy: (M, C, H, W) images that the attacker made, to see what the model says without the truth.
        """
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Joint(Labels):
    """Soft labels, optimized with the images (Zhu et al. 2019, arXiv:1906.08935, algorithm 1)."""

    def infer(self, seen: Observation, dummy: Tensor) -> Tensor | None:
        """``None``."""
        return None


@dataclass(frozen=True, repr=False)
class LastLayer(Labels):
    """The classes of a batch, from the gradient of the last layer.

    For one image, the class whose row has the most negative gradient (Zhao et al. 2020, arXiv:2001.02610,
    equation 6). For N images, the bias gradient is the mean of p - y; with p as the model predicts it on
    dummy images it gives the count of each class, rounded to N in all (Geng et al. 2021,
    arXiv:2110.09074). Without a bias, the rows' sums stand for it, divided by the mean input of the layer. Masks are
    optimized with the images: a gradient holds one number a class.
    """

    def infer(self, seen: Observation, dummy: Tensor) -> Tensor | None:
        """Classes (V, N), ascending in each victim; ``None`` for masks."""
        if seen.label_shape:
            return None
        rows = _row_gradient(seen, dummy)
        if seen.num_images == 1:
            return rows.argmin(1, keepdim=True)
        expected = _mean_probability(seen, dummy)
        counts = (seen.num_images * (expected - rows)).clamp(min=0)
        return torch.stack([_round(c, seen.num_images) for c in counts])


def _round(counts: Tensor, total: int) -> Tensor:
    """Classes of a batch of `total` images whose class counts are nearest to the given ones."""
    if not counts.isfinite().all() or counts.sum() <= 0:
        counts = torch.ones_like(counts)
    counts = counts * (total / counts.sum())
    whole = counts.floor()
    missing = total - int(whole.sum())
    whole[(counts - whole).argsort(descending=True, stable=True)[:missing]] += 1
    return torch.arange(len(counts), device=counts.device).repeat_interleave(whole.long())


def last_layer(seen: Observation) -> tuple[str | None, str | None]:
    """Names of the weight and the bias of the layer that gives the logits; ``None`` where there is none."""
    parameters = seen.views[0].weights.parameters
    for name in reversed(list(parameters)):
        if parameters[name].ndim >= 2 and len(parameters[name]) == seen.num_classes:
            bias = f"{name.rpartition('.')[0]}.bias".lstrip(".")
            return name, bias if bias in parameters and parameters[bias].ndim == 1 else None
    return None, None


def bias_gradient(seen: Observation) -> Tensor | None:
    """(V, K) mean gradient of the last layer's bias over the steps of a round; ``None`` without a bias."""
    bias = last_layer(seen)[1]
    return None if bias is None else _mean_gradient(seen, bias)


def _mean_gradient(seen: Observation, name: str) -> Tensor:
    """(V, ...) mean gradient of a parameter over the steps of a round, as momentum weighs them.

    Of T steps of SGD with momentum m, the gradient of step s counts (1 - m^(T - s)) / (1 - m) times, s from 0; decay
    adds the weights themselves to each, which are taken for those that the round began with.
    """
    view, plan = seen.views[0], seen.views[0].plans[0]  # of several clients, all have one plan
    sent = view.update.tensors[name]
    if view.update.kind == "gradient":
        return sent
    counts = sum(plan.momentum**k for s in range(plan.steps) for k in range(plan.steps - s))
    return sent / (-plan.learning_rate * counts) - plan.weight_decay * view.weights.parameters[name]


def _row_gradient(seen: Observation, dummy: Tensor) -> Tensor:
    """(V, K) estimate of the bias gradient of the last layer, even if it has no bias."""
    if (gradient := bias_gradient(seen)) is not None:
        return gradient
    weight, _ = last_layer(seen)
    if weight is None:
        raise InputError(
            f"labels cannot be inferred: the model has no last layer of {seen.num_classes} rows; "
            "grant the labels, or attack with labels=Joint()"
        )
    inputs = _mean_input(seen, weight.rpartition(".")[0], dummy)
    return _mean_gradient(seen, weight).flatten(2).sum(2) / inputs


def _logits(seen: Observation, dummy: Tensor) -> Tensor:
    weights = seen.views[0].weights
    state: Tensors = {**weights.parameters, **state_of(seen.model, weights.buffers)}
    with torch.no_grad():
        return functional_call(seen.model, dict(state), (dummy,))


def _mean_probability(seen: Observation, dummy: Tensor) -> Tensor:
    return _logits(seen, dummy).softmax(1).mean(0)


def _mean_input(seen: Observation, layer: str, dummy: Tensor) -> Tensor:
    """The sum of the last layer's inputs, averaged over dummy images."""
    caught: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0].flatten(1).sum(1).mean())

    handle = seen.model.get_submodule(layer).register_forward_pre_hook(hook)
    try:
        _logits(seen, dummy)
    finally:
        handle.remove()
    return caught[0].clamp(min=1e-12)
