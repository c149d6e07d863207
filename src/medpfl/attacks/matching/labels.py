"""Label recovery: infer the labels from the update, or optimize them with the images."""

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
"""p - 1 is a multiple of 2^-24 in float32, whatever its size, so sums of p - y are off by a few of these."""

_TINY, _GRAY = 1e-12, 0.5


@dataclass(frozen=True, repr=False)
class Labels(Part):
    """A method to find labels that are not granted."""

    def infer(self, seen: Observation, dummy: Tensor) -> Tensor | None:
        """Return classes (V, N), or ``None`` to optimize soft labels together with the images.

        Args:
            seen: observation.
            dummy: (M, C, H, W) images made by the attacker, to get predictions without the target images.
        """
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Joint(Labels):
    """Soft labels, optimized with the images (Zhu et al. 2019, arXiv:1906.08935, algorithm 1)."""

    def infer(self, seen: Observation, dummy: Tensor) -> Tensor | None:
        """Return ``None``."""
        return None


@dataclass(frozen=True, repr=False)
class LastLayer(Labels):
    """Label recovery from the last layer's gradient.

    For one image, the label is the class with the most negative bias gradient (Zhao et al. 2020, arXiv:2001.02610,
    equation 6). Without a bias, it is the class whose weight row points against all others (equation 5). With two
    classes, where the rows always do, it is the class whose row has a negative product with the layer's inputs for a
    gray image. For N images, the bias gradient is the mean of p - y; with p predicted on dummy images, it gives the
    count of each class, rounded to N in total (Geng et al. 2021, arXiv:2110.09074). Without a bias, the rows' sums
    replace it, divided by the sum of the layer's mean input. Masks are optimized with the images, because a gradient
    holds only one element per class.

    Where a channel states that entries were not sent (a mask), weight rows replace the missing bias entries. Entries
    without any data share the difference of the others from a sum of zero. Parts of a channel that cannot be undone
    (clipping, quantization) are ignored: values are used as they were sent.
    """

    def infer(self, seen: Observation, dummy: Tensor) -> Tensor | None:
        """Return classes (V, N), ascending for each victim; ``None`` for masks."""
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
        """Return one image's class each (V, 1), from an estimate (V, K) of the bias gradient.

        Where some bias entries were not sent, use the weight's rows instead.
        """
        classes = rows.argmin(1, keepdim=True)
        weight, bias = last_layer(seen)
        if weight is None or bias is None or seen.num_classes < 3:
            return classes
        others, gaps = mean_gradient(seen, weight).flatten(2), mean_gradient(seen, bias).isnan().any(1)
        gaps = gaps & ~others.isnan().flatten(1).all(1)
        return torch.where(gaps[:, None], _against_all(others), classes)


def _round(counts: Tensor, total: int) -> Tensor:
    """Return the classes of a batch of `total` images whose class counts are nearest to `counts`."""
    if not counts.isfinite().all() or counts.sum() <= 0:
        counts = torch.ones_like(counts)
    counts = counts * (total / counts.sum())
    whole = counts.floor()
    missing = total - int(whole.sum())
    whole[(counts - whole).argsort(descending=True, stable=True)[:missing]] += 1
    return torch.arange(len(counts), device=counts.device).repeat_interleave(whole.long())


def _against_all(rows: Tensor) -> Tensor:
    """Return the class (V, 1) whose factor alone is negative; rows (V, K, J) are one vector times p - y each."""
    rows = rows.nan_to_num()  # an entry counts only where both rows have it
    unit = rows / rows.norm(dim=2, keepdim=True).clamp(min=1e-37)
    return (unit @ unit.sum(1)[..., None])[..., 0].argmin(1, keepdim=True)


def last_layer(seen: Observation) -> tuple[str | None, str | None]:
    """Return the names of the weight and the bias of the layer that produces the logits; ``None`` where there is none.

    Its gradient has one row per class, all in proportion to the loss's gradient with respect to the logits. If no layer
    qualifies (something follows the last one), it is the last in the model's order.
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
    """Return a vector (K,) that sums to zero, and a gradient for gray images.

    The gradient's loss has minus this vector as its derivative with respect to the logits of every image.
    """
    view = seen.views[0]
    like = next(iter(view.weights.parameters.values()))
    vector = torch.arange(seen.num_classes).to(like) - (seen.num_classes - 1) / 2
    images = vector.new_full((seen.num_images, *seen.image_shape), _GRAY)
    labels = vector.view(-1, *[1] * len(seen.label_shape)).expand(seen.num_images, -1, *seen.label_shape)
    plan = Plan(mode=view.plans[0].mode, batch_size=seen.num_images)
    return vector, local_update(seen.model, Batch(images, labels), plan, view.weights).tensors


def _in_proportion(rows: Tensor, vector: Tensor) -> bool:
    """Return True if every column of the rows (K, J) is a multiple of the vector (K,), and not all are zero."""
    rest = rows - vector[:, None] * (vector @ rows / vector.square().sum())
    return bool(rows.norm() > 0) and bool(rest.norm() <= 1e-3 * rows.norm())


def bias_gradient(seen: Observation) -> Tensor | None:
    """Return the last layer's mean bias gradient (V, K) over a round's steps; ``None`` without a bias.

    Entries that were not sent are NaN.
    """
    bias = last_layer(seen)[1]
    return None if bias is None else mean_gradient(seen, bias)


def mean_gradient(seen: Observation, name: str) -> Tensor:
    """Return a parameter's mean gradient (V, ...) over the first round's steps, without weight decay.

    Entries are NaN where the channel discloses that they were not sent. The mean is weighted by
    `medpfl.core.plan.Plan.gradient_weights`. Weight decay is subtracted as if the weights had been those at the
    beginning of the round in all steps.
    """
    view, plan = seen.views[0], seen.views[0].plans[0]  # all clients have the same plan
    sent, told = view.read(name)
    sent = torch.where(told, sent, torch.nan)
    if view.update.kind == "gradient":
        return sent
    counts = sum(plan.gradient_weights())
    return sent / (-plan.learning_rate * counts) - plan.weight_decay * view.weights.parameters[name]


def _row_gradient(seen: Observation, dummy: Tensor) -> Tensor:
    """Return an estimate (V, K) of the last layer's bias gradient, even if it has no bias or parts were not sent."""
    rows = bias_gradient(seen)
    if rows is not None and not rows.isnan().any():
        return rows
    weight, _ = last_layer(seen)
    if weight is not None:
        other = _from_weight(seen, weight, dummy)
        rows = other if rows is None else torch.where(rows.isnan(), other, rows)
    if rows is None:
        raise InputError(
            f"labels cannot be inferred: the model has no last layer with {seen.num_classes} outputs; "
            "grant the labels, or attack with labels=Joint()"
        )
    missing = rows.isnan()
    share = rows.nansum(1, keepdim=True) / missing.sum(1, keepdim=True).clamp(min=1)
    return torch.where(missing, -share, rows)


def _from_weight(seen: Observation, weight: str, dummy: Tensor) -> Tensor:
    """Return an estimate (V, K) of the bias gradient from the weight's rows; NaN where no part of a row was sent."""
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
    """Return the last layer's inputs (J,), averaged over dummy images."""
    caught: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0].flatten(1).mean(0))

    handle = seen.model.get_submodule(layer).register_forward_pre_hook(hook)
    try:
        _logits(seen, dummy)
    finally:
        handle.remove()
    return caught[0]
