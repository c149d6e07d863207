"""What stands for the labels when a guess's update is computed.

The loss acts on an update only through the gradient of the logits, p - y. Its softmax makes the update depend
exponentially on the image, and where the model is sure of the label, p - 1 loses its digits. But for one
image the gradient of the last bias *is* p - y. With label vectors that sum to zero, cross entropy is linear in
the logits: ``-(l . log p) = -l . z`` if ``sum(l) = 0``. So ``l = y - p``, read from the wire, gives the very
gradient that the client had, without a softmax, through the same `local_update`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from medpfl.attacks.labels import bias_gradient, last_layer
from medpfl.core.types import Batch, Observation, Update
from medpfl.federated.local import local_update

__all__ = ["free_labels", "label_scale", "label_vectors", "linear_loss", "trusted"]

_TOLERANCE = 1e-3
_ROUNDING = 2.0**-21
"""p - 1 is a multiple of 2^-24 in float32, whatever its size; sums of it are off by a few of these."""


def linear_loss(seen: Observation) -> bool:
    """Whether every update is one gradient, so that the logits' gradient is the same all along."""
    if seen.label_shape or any(plan.loss != "cross_entropy" for view in seen.views for plan in view.plans):
        return False
    if len(seen.views) > 1:  # p differs with the weights of each round
        return False
    return all(plan.steps == 1 and not plan.weight_decay for view in seen.views for plan in view.plans)


def free_labels(variables: Tensor) -> Tensor:
    """Label vectors (..., K) that sum to zero, from free variables."""
    return variables - variables.mean(-1, keepdim=True)


def label_scale(seen: Observation) -> Tensor:
    """(V,) the largest entry of y - p as the last bias tells it: the unit of label variables; 1 without a bias."""
    gradient = bias_gradient(seen)
    if gradient is None:
        return next(iter(seen.views[0].update.tensors.values())).new_ones(len(seen))
    return gradient.abs().amax(1).clamp(min=1e-37)


def label_vectors(seen: Observation, classes: Tensor, dummy: Tensor) -> Tensor:
    """(V, N, K) for classes (V, N): y - p where the wire says it, else one-hot y; (V, N, K, H, W) for masks.

    Args:
        seen: the observation.
        classes: as inferred or granted.
        dummy: (1, C, H, W) any image, to see that the last bias gets the logits' gradient unchanged.
    """
    hard = functional.one_hot(classes, seen.num_classes).movedim(-1, 2).to(dummy)
    gradient = _told(seen)
    if gradient is None or not _passes_through(seen, dummy):
        return hard
    whole, rounded = _readable(gradient, classes[:, 0])
    # Rounding spares the other classes' p: of y's own entry the sum is the better reading.
    others = gradient.scatter(1, classes, 0.0)
    vectors = -others.scatter(1, classes, -others.sum(1, keepdim=True))
    return torch.where((whole | rounded)[:, None, None], vectors[:, None], hard)


def trusted(seen: Observation, dummy: Tensor) -> dict[str, Tensor] | None:
    """1 for what to believe of an update by parameter (V, ...), 0 for what rounding has spoiled; ``None``: all.

    Where p - 1 has no digits left, neither has anything that was computed from it: all layers but the last, and
    the label's own row there. The other rows are exact.
    """
    if (gradient := _told(seen)) is None:
        return None
    label = gradient.argmin(1)
    _, rounded = _readable(gradient, label)
    if not rounded.any() or not _passes_through(seen, dummy):
        return None
    rows = functional.one_hot(label, seen.num_classes).to(gradient) == 0
    keep: dict[str, Tensor] = {}
    for name, tensor in seen.views[0].update.tensors.items():
        mask = rows if name in last_layer(seen) else torch.zeros_like(rows[:, :1])
        keep[name] = (mask | ~rounded[:, None]).to(gradient).view(len(mask), -1, *[1] * (tensor.ndim - 2))
    return keep


def _told(seen: Observation) -> Tensor | None:
    """(V, K) the last bias's gradient, where it is p - y of a single image."""
    return bias_gradient(seen) if seen.num_images == 1 and linear_loss(seen) else None


def _readable(gradient: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """(V,) whether p - y (V, K) is all there, and whether only the entry of y is lost to rounding.

    Of p - y exactly one entry is negative, and the sum is zero; noise breaks both.
    """
    size, error = gradient.abs().sum(1), gradient.sum(1).abs()
    lowest = (gradient.argmin(1) == label) & (size > 0)
    others = gradient.scatter(1, label[:, None], 0.0)
    whole = lowest & (error <= _TOLERANCE * size) & ((gradient < 0).sum(1) == 1)
    return whole, lowest & ~whole & (error <= _ROUNDING) & (others >= 0).all(1) & (others.sum(1) > 0)


def _passes_through(seen: Observation, dummy: Tensor) -> bool:
    """Whether the last bias's gradient is that of the logits, whatever the image: no layer comes after it."""
    view = seen.views[0]
    vector = free_labels(torch.arange(1.0, seen.num_classes + 1).to(dummy))
    update = local_update(seen.model, Batch(dummy, vector[None]), view.plan, view.weights)
    found = bias_gradient(replace(seen, views=(replace(view, update=Update.stack([update])),)))
    return found is not None and torch.allclose(-found[0], vector, rtol=1e-3)
