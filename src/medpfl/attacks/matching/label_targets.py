"""What stands for the labels when a guess's update is computed.

The loss acts on an update only through the gradient of the logits, p - y. Its softmax makes the update depend
exponentially on the image, and where the model is sure of the label, p - 1 loses its digits. But for one
image the gradient of the last bias *is* p - y. With label vectors that sum to zero, cross entropy is linear in
the logits: ``-(l . log p) = -l . z`` if ``sum(l) = 0``. So ``l = y - p``, read from the wire, gives the very
gradient that the client had, without a softmax, through the same `local_update`.

Where the model is sure, the client's own p - 1 is rounded, at worst to 0, and what it sent has no sum of zero. All its
layers were computed from just that vector. One more logit, the same for every image, takes what is missing to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medpfl.attacks.matching.labels import ROUNDING, bias_gradient, last_layer, logit_probe
from medpfl.core.types import Observation
from medpfl.core.user_code.copies import copied

__all__ = ["free_labels", "label_scale", "label_vectors", "linear_loss", "rounded", "with_spare"]

_TOLERANCE = 1e-3
_ROUNDED = 1e-6
"""Of p - y, a part that is rounded away matters from here on."""

_NEVER = -1e4
"""The spare logit: its class has probability 0, so that cross entropy with one-hot labels is what it was."""


def linear_loss(seen: Observation) -> bool:
    """Whether every update is one gradient, so that the logits' gradient is the same all along."""
    if seen.label_shape or any(plan.loss != "cross_entropy" for view in seen.views for plan in view.plans):
        return False
    if len(seen.views) > 1:  # p differs with the weights of each round
        return False
    return all(plan.steps == 1 and not plan.weight_decay for view in seen.views for plan in view.plans)


def free_labels(variables: Tensor, whole: Tensor, spare: bool = False) -> Tensor:
    """Label vectors (..., K) from free variables, less their mean where `whole` is 1: they sum to zero there.

    With `spare`, vectors (..., K + 1) for a model `with_spare`, which all do.
    """
    vectors = variables - whole * variables.mean(-1, keepdim=True)
    return _completed(vectors) if spare else vectors


def _completed(vectors: Tensor) -> Tensor:
    return torch.cat([vectors, -vectors.sum(-1, keepdim=True)], -1)


def with_spare(model: nn.Module) -> nn.Module:
    """A copy with logits (N, K + 1), the last of them constant."""

    def hook(_: nn.Module, __: object, logits: Tensor) -> Tensor:
        return functional.pad(logits, (0, 1), value=_NEVER)

    other = copied(model, forget=True)
    other.register_forward_hook(hook)
    return other


def label_scale(seen: Observation) -> Tensor:
    """(V,) the largest entry of y - p as the last bias tells it: the unit of label variables; 1 where it does not."""
    gradient = bias_gradient(seen)
    if gradient is None:
        return next(iter(seen.views[0].update.tensors.values())).new_ones(len(seen))
    size = gradient.abs().nan_to_num().amax(1).clamp(min=1e-37)
    return torch.where(gradient.isnan().all(1), 1.0, size)


def label_vectors(seen: Observation, classes: Tensor, like: Tensor) -> Tensor:
    """(V, N, K) for classes (V, N): y - p where the wire says it, else one-hot y; (V, N, K, H, W) for masks.

    Where `rounded` says that a victim's y - p has no sum of zero, (V, N, K + 1) for a model `with_spare`.

    Args:
        seen: the observation.
        classes: as inferred or granted.
        like: of the dtype and on the device that one-hot y is to have.
    """
    hard = functional.one_hot(classes, seen.num_classes).movedim(-1, 2).to(like)
    gradient = _told(seen)
    if gradient is None or not _passes_through(seen):
        return hard
    whole, spoiled = _readable(gradient, classes[:, 0])
    # Of y's own entry the sum is the better reading, where all of it is there.
    others = gradient.scatter(1, classes, 0.0)
    vectors = -others.scatter(1, classes, -others.sum(1, keepdim=True))
    vectors = torch.where(whole[:, None, None], vectors[:, None], hard)
    if not spoiled.any():
        return vectors
    return torch.where(spoiled[:, None, None], _completed(-gradient)[:, None], functional.pad(vectors, (0, 1)))


def rounded(seen: Observation) -> Tensor:
    """(V,) whether rounding has left p - y, and all that the client computed from it, without a sum of zero."""
    device, gradient = next(iter(seen.views[0].update.tensors.values())).device, _told(seen)
    none = torch.zeros(len(seen), dtype=torch.bool, device=device)
    spoiled = none if gradient is None else _readable(gradient, gradient.argmin(1))[1]
    return spoiled if spoiled.any() and _passes_through(seen) else none


def _told(seen: Observation) -> Tensor | None:
    """(V, K) the last bias's gradient, where it is p - y of a single image; NaN where it was not sent."""
    return bias_gradient(seen) if seen.num_images == 1 and linear_loss(seen) else None


def _readable(gradient: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """(V,) whether p - y (V, K) is all there, and whether the entry of y is rounded, all others being exact.

    Of p - y exactly one entry is negative, and the sum is zero; noise breaks both, and so does an entry that is NaN.
    """
    size, error = gradient.abs().sum(1), gradient.sum(1).abs()
    lowest = (gradient.argmin(1) == label) & (size > 0)
    others = gradient.scatter(1, label[:, None], 0.0)
    spoiled = lowest & (others >= 0).all(1) & (others.sum(1) > 0) & (error <= ROUNDING) & (error > _ROUNDED * size)
    whole = lowest & ~spoiled & (error <= _TOLERANCE * size) & ((gradient < 0).sum(1) == 1)
    return whole, spoiled


def _passes_through(seen: Observation) -> bool:
    """Whether the last bias's gradient is that of the logits, whatever the image: no layer comes after it."""
    bias = last_layer(seen)[1]
    if bias is None:
        return False
    vector, made = logit_probe(seen)
    return torch.allclose(-made[bias], vector, rtol=1e-3)
