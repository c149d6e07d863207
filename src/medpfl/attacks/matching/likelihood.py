"""The sent update's likelihood given a guess, and an estimate of the noise where it is not disclosed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medpfl.attacks.matching.labels import ROUNDING, last_layer, mean_gradient
from medpfl.attacks.matching.objectives import Objective, Target
from medpfl.core.channels.channel import Channel
from medpfl.core.errors import InputError
from medpfl.core.types import Observation, Tensors, View

__all__ = ["Likelihood", "noise_from_columns", "with_noise"]

_ROUND = 0.3


@dataclass(frozen=True, repr=False)
class Likelihood(Objective):
    """Negative log likelihood per coordinate under normal noise: half the squared distance in units of the noise.

    ``sum(precision * residual^2) / (2 * coordinates)``; where there are bounds, the residual beyond them. It is about
    1/2 at the target image; a lower value shows that noise was fitted. Without a precision, the only noise is the
    floor's.

    Attributes:
        floor: relative noise floor, above 0: every variance is increased by ``floor^2`` times its tensor's mean square.
            No tensor is fitted more closely than that, and layers with tiny updates, to which precision alone gives all
            the weight, leave some to the others. A large floor gives a smoother landscape, in which to start.
        laplace: assume Laplace noise with the same variance: ``|residual| / scale`` per coordinate, rounded off below
            0.3 scales so that it has curvature; about 0.8 at the target image.
    """

    floor: float = 1e-3
    laplace: bool = False

    def __post_init__(self) -> None:
        if not self.floor > 0:
            raise InputError(f"floor is {self.floor}: it must be above 0")

    def prepare(self, sent: Target) -> Target:
        """Return the update, its bounds, and the precision divided by the number of coordinates."""
        update, precision = sent["sent"], sent.get("precision")
        count = sum(t.numel() for t in update.values())
        weight = {}
        for name, t in update.items():
            least = self.floor**2 * t.square().mean().clamp(min=1e-30)
            known = torch.full_like(t, torch.inf) if precision is None else precision[name]
            weight[name] = torch.where(known > 0, 1 / (1 / known + least), 0.0) / count
        return {**{k: v for k, v in sent.items() if k in ("sent", "bounds")}, "weight": weight}

    def value_and_direction(self, fake: Tensors, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the value and its derivative with respect to the guess's update."""
        total, direction = torch.zeros(()), {}
        count = sum(t.numel() for t in target["sent"].values())
        for name, sent in target["sent"].items():
            residual = fake[name] - sent
            if "bounds" in target:
                bound = target["bounds"][name]
                residual = residual - residual.clamp(-bound, bound)
            if self.laplace:
                rate = (2 * count * target["weight"][name]).sqrt()  # 1 / scale; 0 where nothing is known
                rounded = ((residual * rate).square() + _ROUND**2).sqrt()
                direction[name] = residual * rate.square() / rounded / count
                total = total + (rounded - _ROUND).sum() / count
            else:
                direction[name] = residual * target["weight"][name]
                total = total + (residual * direction[name]).sum() / 2
        return total, direction


def noise_from_columns(seen: Observation, view: View) -> Tensor | None:
    """Return the variance (V,) of independent noise on the last matrix (V, K, J), from sums that vanish without noise.

    The gradient of cross entropy with respect to the logits is p - y, which sums to zero over classes. So does each
    column of the last matrix's gradient, after any number of steps. A column's sum is therefore the noise of K
    coordinates.

    Return ``None`` where columns need not sum to zero: under weight decay, or without such a matrix.
    """
    weight = last_layer(seen)[0]
    if weight is None or any(plan.weight_decay for plan in view.plans):
        return None
    rows = view.read(weight)[0].flatten(2)  # all of it was sent: the channel states no precision
    # With two classes, columns may cancel to the last digit: rounding is noise, too.
    rounding = torch.finfo(rows.dtype).eps * rows.abs().flatten(1).amax(1)
    variance = rows.sum(1).square().mean(1) / rows.shape[1]
    return torch.where(_rounded_away(seen, view), 0.0, variance).clamp(min=rounding.square())


def _rounded_away(seen: Observation, view: View) -> Tensor:
    """Return a mask (V,): the column sums are no larger than rounding p - y explains.

    Where a model is sure of a label, p - 1 loses its digits, at worst all of them. Sums over classes are then off by a
    rounding error times the layer's inputs. The row with the largest p - y gives these inputs.
    """
    weight, bias = last_layer(seen)
    if weight is None or bias is None:
        return torch.zeros(len(seen), dtype=torch.bool, device=next(iter(view.update.tensors.values())).device)
    rows, told = (mean_gradient(replace(seen, views=(view,)), name) for name in (weight, bias))
    size, largest = told.abs().max(1)
    row = rows.flatten(2)[torch.arange(len(rows), device=rows.device), largest]
    inputs = row.square().mean(1).sqrt() / size.clamp(min=torch.finfo(rows.dtype).tiny)
    return rows.flatten(2).sum(1).square().mean(1).sqrt() <= ROUNDING * inputs


def with_noise(seen: Observation) -> Observation:
    """Return the observation with estimated noise in each view whose channel states neither noise nor bounds.

    The estimate is that of `noise_from_columns`, the same for all coordinates.
    """
    return replace(seen, views=tuple(_with_noise(seen, view) for view in seen.views))


def _with_noise(seen: Observation, view: View) -> View:
    channel = view.channel or Channel()
    if channel.precision is not None or channel.bounds is not None:
        return view
    variance = noise_from_columns(seen, view)
    if variance is None:
        return view
    sent = view.update.tensors
    precision = {k: (1 / variance.to(t)).view(-1, *[1] * (t.ndim - 1)).expand_as(t) for k, t in sent.items()}
    return replace(view, channel=replace(channel, precision=precision))
