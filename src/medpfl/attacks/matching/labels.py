"""Label recovery: infer the labels from the update, or optimize them with the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medpfl.attacks.label_counts.clients import Head, made_up
from medpfl.attacks.label_counts.evidence import Gradient, best_counts, classes_of, counts_of
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

_MOST_CLASSES = 12
"""Number of classes up to which counts are compared by their evidence, which takes time with their cube."""


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
    gray image. For N images, the whole layer's gradient gives the count of each class, the one with the largest
    evidence (`medpfl.attacks.label_counts.evidence`). Several local steps count as one gradient at the weights midway
    between the steps. Masks are optimized with the images, because a gradient holds only one element per class.

    With more than 12 classes, with entries that were not sent, and where something follows the last layer, the mean of
    p - y is taken from the bias gradient, and p from made-up images; the counts are rounded to N in total (Geng et al.
    2021, arXiv:2110.09074). Without a bias, the rows' sums replace it, divided by the sum of the layer's mean input.
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
        known = (classes_of(c, seen.num_images, seen.num_classes) for c in _counts(seen, rows, dummy))
        return torch.stack(list(known)).to(rows.device)

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


def _counts(seen: Observation, rows: Tensor, dummy: Tensor) -> Iterator[Tensor]:
    """Yield the counts (K,) of each victim's batch, from estimates (V, K) of the last layer's bias gradient."""
    weight, bias = last_layer(seen)
    head = (
        None if weight is None or len(rows[0]) > _MOST_CLASSES or not _is_linear(seen, weight) else Head(weight, bias)
    )
    moves, clients = seen.views[0].plans[0].steps > 1, None
    smoothing = seen.views[0].plans[0].label_smoothing
    for v, row in enumerate(rows):
        if head is not None and (moves or not v):
            clients = made_up(seen, head, _midway(seen, v))
        gradient = None if head is None else _last_gradient(seen, head, v)
        if clients is not None and gradient is not None:
            yield best_counts(clients, gradient)
        else:
            chances = _mean_probability(seen, dummy)
            yield counts_of(chances.double().cpu(), row.double().cpu(), seen.num_images, smoothing)


def _is_linear(seen: Observation, weight: str) -> bool:
    return isinstance(seen.model.get_submodule(weight.rpartition(".")[0]), nn.Linear)


def _midway(seen: Observation, v: int) -> Tensors:
    """Return a victim's parameters at the mean of its local steps, if weights moved on a straight line."""
    view = seen.views[0]
    steps = view.plans[0].steps
    if steps == 1:
        return view.weights.parameters
    share = (steps - 1) / (2 * steps)
    return {k: t + share * view.read(k)[0][v].nan_to_num(0.0) for k, t in view.weights.parameters.items()}


def _last_gradient(seen: Observation, head: Head, v: int) -> Gradient | None:
    """Return a victim's gradient of the last layer, summed over its images; ``None`` if parts of it were not sent."""
    images, smoothing = seen.num_images, seen.views[0].plans[0].label_smoothing
    weight, *bias = (
        images * mean_gradient(seen, name)[v].double().cpu() for name in (head.weight, head.bias) if name is not None
    )
    if not all(bool(part.isfinite().all()) for part in (weight, *bias)):
        return None
    return Gradient(weight, bias[0] if bias else None, images, smoothing)


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
