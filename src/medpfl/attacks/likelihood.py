"""How likely the sent update is, given a guess, in units of the noise; and how large the noise is where none tells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medpfl.attacks.labels import last_layer
from medpfl.attacks.objectives import Objective, Target
from medpfl.core.channel import Channel
from medpfl.core.types import Observation, Tensors, View

__all__ = ["Likelihood", "noise_from_columns", "with_precision"]


@dataclass(frozen=True, repr=False)
class Likelihood(Objective):
    """Half the squared distance in units of the noise, a coordinate: the negative log likelihood of normal noise.

    ``sum(precision * residual^2) / (2 * coordinates)``, of a residual beyond the bounds, where there are bounds. It
    is about 1/2 at the truth: less says that noise was fitted. Noise of another distribution (Laplace) is taken for
    normal noise of the same variance. Without a precision, 1 stands for it.
    """

    def prepare(self, sent: Target) -> Target:
        """The update, its bounds, and the precision over the number of coordinates."""
        update = sent["sent"]
        count = sum(t.numel() for t in update.values())
        precision = sent.get("precision") or {name: torch.ones_like(t) for name, t in update.items()}
        return {**{k: v for k, v in sent.items() if k in ("sent", "bounds")}, "weight": _times(precision, 1 / count)}

    def value_and_direction(self, fake: Tensors, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """The value, and its derivative by the guess's update."""
        total, direction = torch.zeros(()), {}
        for name, sent in target["sent"].items():
            residual = fake[name] - sent
            if "bounds" in target:
                bound = target["bounds"][name]
                residual = residual - residual.clamp(-bound, bound)
            direction[name] = residual * target["weight"][name]
            total = total + (residual * direction[name]).sum() / 2
        return total, direction


def _times(tensors: Tensors, factor: float) -> dict[str, Tensor]:
    return {name: t * factor for name, t in tensors.items()}


def noise_from_columns(seen: Observation, view: View) -> Tensor | None:
    """(V,) variance of independent noise on the last matrix (V, K, J), from what must vanish there.

    Cross entropy's gradient by the logits is p - y, which sums to zero over classes, and so does each column of
    the last matrix's gradient, after any number of steps. What a column sums to is the noise of K coordinates.

    Returns ``None`` where columns need not sum to zero: under weight decay, or without such a matrix.
    """
    weight = last_layer(seen)[0]
    if weight is None or any(plan.weight_decay for plan in view.plans):
        return None
    rows = view.update.tensors[weight].flatten(2)
    return rows.sum(1).square().mean(1) / rows.shape[1]


def with_precision(seen: Observation, floor: float) -> Observation:
    """The same views, each with a channel that has a precision everywhere.

    What a channel does not tell of noise is estimated (`noise_from_columns`), the same for all coordinates. Then
    every variance is at least ``floor^2`` of the mean square of its tensor: no model is fitted more closely than
    that, and layers of tiny updates, to which a deterministic channel gives all the weight, leave others theirs.
    """
    return replace(seen, views=tuple(replace(v, channel=_precise(seen, v, floor)) for v in seen.views))


def _precise(seen: Observation, view: View, floor: float) -> Channel:
    channel, sent = view.channel or Channel(), view.update.tensors
    known = channel.precision
    if known is None:
        told = channel.bounds is None
        variance = noise_from_columns(seen, view) if told else None
        known = {name: _everywhere(t, variance) for name, t in sent.items()}
    return replace(channel, precision={name: _floored(known[name], t, floor) for name, t in sent.items()})


def _everywhere(like: Tensor, variance: Tensor | None) -> Tensor:
    """A precision in the shape of a tensor (V, ...); of no noise, infinity."""
    value = like.new_zeros(len(like)) if variance is None else variance.to(like)
    return (1 / value).view(-1, *[1] * (like.ndim - 1)).expand_as(like)


def _floored(precision: Tensor, sent: Tensor, floor: float) -> Tensor:
    square = sent.flatten(1).square().mean(1).clamp(min=1e-30).view(-1, *[1] * (sent.ndim - 1))
    return torch.where(precision > 0, 1 / (1 / precision + floor**2 * square), 0.0)
