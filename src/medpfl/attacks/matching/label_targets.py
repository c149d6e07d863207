"""Label vectors that stand for the labels when a guess's update is computed.

The loss affects an update only through its gradient with respect to the logits, p - y. The softmax makes the update
depend exponentially on the image, and p - 1 loses its digits where the model is sure of the label. But for one image
the gradient of the last bias *is* p - y. For label vectors that sum to zero, cross entropy is linear in the logits:
``-(l . log p) = -l . z`` if ``sum(l) = 0``. With ``l = y - p`` from the update, the same `local_update` therefore gives
exactly the client's gradient, without a softmax.

Where the model is sure, the client's own p - 1 is rounded, at worst to 0, and the sent vector does not sum to zero. The
client computed all layers from this vector. One more logit, the same for every image, makes the sum zero.
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
"""Relative rounding error above which p - y counts as rounded."""

_NEVER = -1e4
"""Value of the spare logit: its class has probability 0, so cross entropy with one-hot labels does not change."""


def linear_loss(seen: Observation) -> bool:
    """Return True if every update is one gradient, so that the logits' gradient stays the same throughout."""
    if seen.label_shape or any(plan.loss != "cross_entropy" for view in seen.views for plan in view.plans):
        return False
    if len(seen.views) > 1:  # p differs with the weights of each round
        return False
    return all(plan.steps == 1 and not plan.weight_decay for view in seen.views for plan in view.plans)


def free_labels(variables: Tensor, whole: Tensor, spare: bool = False) -> Tensor:
    """Return label vectors (..., K) from free variables. Where `whole` is 1, they sum to zero (minus their mean).

    With `spare`, return vectors (..., K + 1) for a model `with_spare`. These all sum to zero.
    """
    vectors = variables - whole * variables.mean(-1, keepdim=True)
    return _completed(vectors) if spare else vectors


def _completed(vectors: Tensor) -> Tensor:
    return torch.cat([vectors, -vectors.sum(-1, keepdim=True)], -1)


def with_spare(model: nn.Module) -> nn.Module:
    """Return a copy of the model with logits (N, K + 1), the last of them constant."""

    def hook(_: nn.Module, __: object, logits: Tensor) -> Tensor:
        return functional.pad(logits, (0, 1), value=_NEVER)

    other = copied(model, forget=True)
    other.register_forward_hook(hook)
    return other


def label_scale(seen: Observation) -> Tensor:
    """Return each victim's scale (V,) for label variables: the last bias's largest absolute gradient, or 1."""
    gradient = bias_gradient(seen)
    if gradient is None:
        return next(iter(seen.views[0].update.tensors.values())).new_ones(len(seen))
    size = gradient.abs().nan_to_num().amax(1).clamp(min=1e-37)
    return torch.where(gradient.isnan().all(1), 1.0, size)


def label_vectors(seen: Observation, classes: Tensor, like: Tensor) -> Tensor:
    """Return label vectors (V, N, K) for classes (V, N); (V, N, K, H, W) for masks.

    They are y - p where the update shows it, otherwise one-hot y. If y - p does not sum to zero for some victim (see
    `rounded`), the vectors are (V, N, K + 1), for a model `with_spare`.

    Args:
        seen: observation.
        classes: inferred or granted classes.
        like: tensor with the dtype and device for one-hot y.
    """
    hard = functional.one_hot(classes, seen.num_classes).movedim(-1, 2).to(like)
    gradient = _told(seen)
    if gradient is None or not _passes_through(seen):
        return hard
    whole, spoiled = _readable(gradient, classes[:, 0])
    # The sum over the others is more precise than y's own entry.
    others = gradient.scatter(1, classes, 0.0)
    vectors = -others.scatter(1, classes, -others.sum(1, keepdim=True))
    vectors = torch.where(whole[:, None, None], vectors[:, None], hard)
    if not spoiled.any():
        return vectors
    return torch.where(spoiled[:, None, None], _completed(-gradient)[:, None], functional.pad(vectors, (0, 1)))


def rounded(seen: Observation) -> Tensor:
    """Return a mask (V,): rounding has left p - y, and everything computed from it, without a zero sum."""
    device, gradient = next(iter(seen.views[0].update.tensors.values())).device, _told(seen)
    none = torch.zeros(len(seen), dtype=torch.bool, device=device)
    spoiled = none if gradient is None else _readable(gradient, gradient.argmin(1))[1]
    return spoiled if spoiled.any() and _passes_through(seen) else none


def _told(seen: Observation) -> Tensor | None:
    """Return the last bias's gradient (V, K) if it is p - y for one image, else ``None``; NaN where not sent."""
    return bias_gradient(seen) if seen.num_images == 1 and linear_loss(seen) else None


def _readable(gradient: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return two masks (V,): p - y (V, K) is complete; only its entry at y is rounded, and all others are exact.

    Exactly one entry of p - y is negative, and the sum is zero. Noise breaks both, and so does a NaN entry.
    """
    size, error = gradient.abs().sum(1), gradient.sum(1).abs()
    lowest = (gradient.argmin(1) == label) & (size > 0)
    others = gradient.scatter(1, label[:, None], 0.0)
    spoiled = lowest & (others >= 0).all(1) & (others.sum(1) > 0) & (error <= ROUNDING) & (error > _ROUNDED * size)
    whole = lowest & ~spoiled & (error <= _TOLERANCE * size) & ((gradient < 0).sum(1) == 1)
    return whole, spoiled


def _passes_through(seen: Observation) -> bool:
    """Return True if the last bias has the logits' gradient for every image, because no layer follows it."""
    bias = last_layer(seen)[1]
    if bias is None:
        return False
    vector, made = logit_probe(seen)
    return torch.allclose(-made[bias], vector, rtol=1e-3)
