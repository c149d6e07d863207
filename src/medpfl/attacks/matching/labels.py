"""What labels the private images have: inferred from the update, or optimized with the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.spec import Part
from medpfl.core.types import Batch, Observation, Tensors
from medpfl.federated.local import local_update
from medpfl.federated.ready import state_of

__all__ = ["ROUNDING", "Joint", "Labels", "LastLayer", "bias_gradient", "last_layer", "logit_probe", "mean_gradient"]

ROUNDING = 2.0**-21
"""p - 1 is a multiple of 2^-24 in float32, whatever its size; sums of p - y are off by a few of these."""

_TINY, _GRAY = 1e-12, 0.5


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
    equation 6). Without a bias, it is the row that points against all others (equation 5); of two classes, whose rows
    always do, the one whose product with the layer's inputs of a gray image is negative. For N images, the bias
    gradient is the mean of p - y; with p as the model predicts it on dummy images it gives the count of each class,
    rounded to N in all (Geng et al. 2021, arXiv:2110.09074). Without a bias, the rows' sums stand for it, divided by
    the sum of the layer's mean input. Masks are optimized with the images: a gradient holds one number a class.

    Where a channel says that entries were not sent (a mask), the rows of the weight stand for entries of the bias, and
    entries of which nothing was sent share what the others lack to a sum of zero. Parts of a channel that could not
    be undone (clipping, quantization) are not accounted for: what is read is the value as it was sent.
    """

    def infer(self, seen: Observation, dummy: Tensor) -> Tensor | None:
        """Classes (V, N), ascending in each victim; ``None`` for masks."""
        if seen.label_shape:
            return None
        weight, bias = last_layer(seen)
        if seen.num_images == 1 and weight is not None and bias is None and seen.num_classes > 2:
            return _against_all(mean_gradient(seen, weight).flatten(2))
        rows = _row_gradient(seen, dummy)
        if seen.num_images == 1:
            return self._of_one(seen, rows)
        expected = _mean_probability(seen, dummy)
        counts = (seen.num_images * (expected - rows)).clamp(min=0)
        return torch.stack([_round(c, seen.num_images) for c in counts])

    def _of_one(self, seen: Observation, rows: Tensor) -> Tensor:
        """Classes (V, 1) of one image each, by the estimate (V, K) of the bias gradient, or, where not all of that was
        sent, by the rows of the weight.
        """
        classes = rows.argmin(1, keepdim=True)
        weight, bias = last_layer(seen)
        if weight is None or bias is None or seen.num_classes < 3:
            return classes
        others, gaps = mean_gradient(seen, weight).flatten(2), mean_gradient(seen, bias).isnan().any(1)
        gaps = gaps & ~others.isnan().flatten(1).all(1)
        return torch.where(gaps[:, None], _against_all(others), classes)


def _round(counts: Tensor, total: int) -> Tensor:
    """Classes of a batch of `total` images whose class counts are nearest to the given ones."""
    if not counts.isfinite().all() or counts.sum() <= 0:
        counts = torch.ones_like(counts)
    counts = counts * (total / counts.sum())
    whole = counts.floor()
    missing = total - int(whole.sum())
    whole[(counts - whole).argsort(descending=True, stable=True)[:missing]] += 1
    return torch.arange(len(counts), device=counts.device).repeat_interleave(whole.long())


def _against_all(rows: Tensor) -> Tensor:
    """(V, 1) of rows (V, K, J), which are one vector times p - y each, the one whose factor alone is negative."""
    rows = rows.nan_to_num()  # of two rows, entries count that both have
    unit = rows / rows.norm(dim=2, keepdim=True).clamp(min=1e-37)
    return (unit @ unit.sum(1)[..., None])[..., 0].argmin(1, keepdim=True)


def last_layer(seen: Observation) -> tuple[str | None, str | None]:
    """Names of the weight and the bias of the layer that gives the logits; ``None`` where there is none.

    It is the one whose gradient has a row for each class, all rows in proportion to what the loss sends into the
    logits. Where no layer's are (something comes after the last one), the last in the model's order.
    """
    parameters = seen.views[0].weights.parameters
    rows = [k for k, t in parameters.items() if t.ndim >= 2 and len(t) == seen.num_classes]
    if len(rows) > 1:
        vector, made = logit_probe(seen)
        rows = [k for k in rows if _in_proportion(made[k].flatten(1), vector)] or rows
    if not rows:
        return None, None
    bias = f"{rows[-1].rpartition('.')[0]}.bias".lstrip(".")
    return rows[-1], bias if bias in parameters and parameters[bias].ndim == 1 else None


def logit_probe(seen: Observation) -> tuple[Tensor, Tensors]:
    """A vector (K,) of sum zero, and the gradient of gray images whose loss sends minus it into all logits."""
    view = seen.views[0]
    like = next(iter(view.weights.parameters.values()))
    vector = torch.arange(seen.num_classes).to(like) - (seen.num_classes - 1) / 2
    images = vector.new_full((seen.num_images, *seen.image_shape), _GRAY)
    labels = vector.view(-1, *[1] * len(seen.label_shape)).expand(seen.num_images, -1, *seen.label_shape)
    plan = Plan(mode=view.plans[0].mode, batch_size=seen.num_images)
    return vector, local_update(seen.model, Batch(images, labels), plan, view.weights).tensors


def _in_proportion(rows: Tensor, vector: Tensor) -> bool:
    """Whether every column of the rows (K, J) is a multiple of the vector (K,), and not all are zero."""
    rest = rows - vector[:, None] * (vector @ rows / vector.square().sum())
    return bool(rows.norm() > 0) and bool(rest.norm() <= 1e-3 * rows.norm())


def bias_gradient(seen: Observation) -> Tensor | None:
    """(V, K) mean gradient of the last layer's bias over the steps of a round, NaN where it was not sent; ``None``
    without a bias.
    """
    bias = last_layer(seen)[1]
    return None if bias is None else mean_gradient(seen, bias)


def mean_gradient(seen: Observation, name: str) -> Tensor:
    """(V, ...) mean gradient of a parameter over the steps of a round, as momentum weighs them; NaN where not sent.

    Of T steps of SGD with momentum m, the gradient of step s counts (1 - m^(T - s)) / (1 - m) times, s from 0; decay
    adds the weights themselves to each, which are taken for those that the round began with.
    """
    view, plan = seen.views[0], seen.views[0].plans[0]  # of several clients, all have one plan
    sent, told = view.read(name)
    sent = torch.where(told, sent, torch.nan)
    if view.update.kind == "gradient":
        return sent
    counts = sum(plan.momentum**k for s in range(plan.steps) for k in range(plan.steps - s))
    return sent / (-plan.learning_rate * counts) - plan.weight_decay * view.weights.parameters[name]


def _row_gradient(seen: Observation, dummy: Tensor) -> Tensor:
    """(V, K) estimate of the bias gradient of the last layer, even if it has no bias or not all of it was sent."""
    rows = bias_gradient(seen)
    if rows is not None and not rows.isnan().any():
        return rows
    weight, _ = last_layer(seen)
    if weight is not None:
        other = _from_weight(seen, weight, dummy)
        rows = other if rows is None else torch.where(rows.isnan(), other, rows)
    if rows is None:
        raise InputError(
            f"labels cannot be inferred: the model has no last layer of {seen.num_classes} rows; "
            "grant the labels, or attack with labels=Joint()"
        )
    missing = rows.isnan()
    share = rows.nansum(1, keepdim=True) / missing.sum(1, keepdim=True).clamp(min=1)
    return torch.where(missing, -share, rows)


def _from_weight(seen: Observation, weight: str, dummy: Tensor) -> Tensor:
    """(V, K) estimate of the bias gradient from the rows of the weight; NaN where nothing of a row was sent."""
    layer, rows = weight.rpartition(".")[0], mean_gradient(seen, weight).flatten(2)
    told = ~rows.isnan()
    rows, none = rows.nan_to_num(), ~told.any(2)
    if seen.num_images == 1:
        inputs = _mean_inputs(seen, layer, torch.full_like(dummy[:1], _GRAY))
        if len(inputs) == rows.shape[2]:
            sizes = told.to(inputs) @ inputs.square()
            return (rows @ inputs / sizes.clamp(min=_TINY)).masked_fill(none, torch.nan)
    inputs = _mean_inputs(seen, layer, dummy)
    total = told.to(inputs) @ inputs if len(inputs) == rows.shape[2] else inputs.sum().expand(rows.shape[:2])
    return (rows.sum(2) / torch.where(total.abs() < _TINY, _TINY, total)).masked_fill(none, torch.nan)


def _logits(seen: Observation, dummy: Tensor) -> Tensor:
    weights = seen.views[0].weights
    state: Tensors = {**weights.parameters, **state_of(seen.model, weights.buffers)}
    with torch.no_grad():
        return functional_call(seen.model, dict(state), (dummy,))


def _mean_probability(seen: Observation, dummy: Tensor) -> Tensor:
    return _logits(seen, dummy).softmax(1).mean(0)


def _mean_inputs(seen: Observation, layer: str, dummy: Tensor) -> Tensor:
    """(J,) the last layer's inputs, averaged over dummy images."""
    caught: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0].flatten(1).mean(0))

    handle = seen.model.get_submodule(layer).register_forward_pre_hook(hook)
    try:
        _logits(seen, dummy)
    finally:
        handle.remove()
    return caught[0]
