"""Distances between a guess's update and the sent one, for one victim.

Each objective returns its value and, in closed form, its derivative with respect to the guess's update, so that second
derivatives through the network are needed only once. Values are relative (1 or less for a zero update, 0 for a perfect
match), so that one tolerance serves every model. `prepare` computes once everything that depends on the sent update
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.spec import Part
from medpfl.core.types import Tensors

__all__ = ["Cosine", "Objective", "SquaredDistance"]

Target = Mapping[str, Tensors]
"""Tensors for an objective to compare with, by kind and then by parameter."""

_TINY = 1e-30
_LEAST_SHARE = 1e-3
"""Smallest share of a tensor that looks like pure noise. It still shows that nothing larger was there."""


@dataclass(frozen=True, repr=False)
class Objective(Part):
    """The distance between two updates for one victim, given each coordinate's precision and bounds where known."""

    def prepare(self, sent: Target) -> Target:
        """Return the target for `value_and_direction`. Works under ``vmap``.

        Args:
            sent: ``"sent"``, the sent update; ``"precision"`` and ``"bounds"`` by coordinate, where they are known (see
                `medpfl.core.types.Channel`).
        """
        raise NotImplementedError

    def value_and_direction(self, fake: Tensors, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the distance (a scalar) for the guess's update, after the channel's known part, and its derivative."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class SquaredDistance(Objective):
    """Squared Euclidean distance with a weight for each layer.

    Attributes:
        weighting: ``'none'`` is the plain distance (Zhu et al. 2019, arXiv:1906.08935, equation 4), weighted by each
            coordinate's precision where it is known. ``'layer'`` divides each tensor's part by that tensor's root mean
            square in the sent update, so that large tensors' squares do not hide those of small ones: a tensor counts
            by its number of elements. A known precision then weighs coordinates within a tensor, relative to the
            tensor's mean precision, and the whole tensor is weighted by the share of its square that is not noise. By
            precision alone, layers with tiny updates, the hardest to match, would hide all others.
        head: additional weight for the last layer's matrix under ``'layer'``, since it alone reveals the layer's
            inputs.
    """

    weighting: Literal["none", "layer"] = "layer"
    head: float = 12.0

    def __post_init__(self) -> None:
        if self.weighting not in ("none", "layer"):
            raise InputError(f"weighting is '{self.weighting}': choose 'none' or 'layer'")
        if not self.head > 0:
            raise InputError(f"head is {self.head}: it must be above 0")

    def prepare(self, sent: Target) -> Target:
        """Return the update, its bounds, and the weight of every tensor or coordinate."""
        update = sent["sent"]
        weight = self._weights(update)
        if "precision" in sent and self.weighting == "none":
            weight = sent["precision"]
        elif "precision" in sent:
            told = {name: _reliability(sent["precision"][name], t) for name, t in update.items()}
            weight = {name: w * told[name] for name, w in weight.items()}
        total = sum(((weight[k] * t.square()).sum() for k, t in update.items()), torch.zeros(()))
        shares = {k: w / total.clamp(min=_TINY) for k, w in weight.items()}
        return {**{k: v for k, v in sent.items() if k in ("sent", "bounds")}, "weight": shares}

    def value_and_direction(self, fake: Tensors, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the residual's weighted sum of squares, divided by the sent update's."""
        value, direction = torch.zeros(()), {}
        for name, sent in target["sent"].items():
            residual = fake[name] - sent
            if "bounds" in target:
                bound = target["bounds"][name]
                residual = residual - residual.clamp(-bound, bound)
            weight = target["weight"][name]
            direction[name] = residual * (2 * weight)
            # For a wide layer, memory costs more than arithmetic: with one weight, make no tensor of products.
            if weight.ndim:
                value = value + (residual * direction[name]).sum() / 2
            else:
                value = value + weight * _square(residual)
        return value, direction

    def _weights(self, sent: Tensors) -> dict[str, Tensor]:
        if self.weighting == "none":
            return {name: tensor.new_ones(()) for name, tensor in sent.items()}
        sizes = {name: (tensor.square().sum() / max(tensor.numel(), 1)).sqrt() for name, tensor in sent.items()}
        # A layer whose update vanishes must not get all the weight.
        floor = 1e-6 * torch.stack(list(sizes.values())).amax() + _TINY
        weights = {name: 1 / size.clamp(min=floor) for name, size in sizes.items()}
        if matrices := [name for name, tensor in sent.items() if tensor.ndim >= 2]:
            weights[matrices[-1]] = self.head * weights[matrices[-1]]
        return weights


def _reliability(precision: Tensor, sent: Tensor) -> Tensor:
    """Return the precision over its mean, times the share (above 0) of the tensor's square not due to noise."""
    precision = precision.clamp(max=1 / _TINY)  # an exact coordinate is not infinitely better than the next
    known = (precision > 0).sum().clamp(min=1)
    relative = precision / (precision.sum() / known).clamp(min=_TINY)
    share = 1 - known / (precision * sent.square()).sum().clamp(min=_TINY)
    return relative * share.clamp(min=_LEAST_SHARE)


@dataclass(frozen=True, repr=False)
class Cosine(Objective):
    """One minus the cosine between the updates (Geiping et al. 2020, arXiv:2003.14053, eq. 4).

    In an angle, no coordinate is free within an interval. A coordinate whose error may be as large as its value has no
    known direction, and is left out: such as one that was not sent.

    Attributes:
        scope: ``'global'``: one cosine for the whole updates, as in the paper. ``'layer'``: the mean of the tensors'
            own cosine distances, so that small tensors count as much as large ones. Tensors that are zero in the sent
            update have no direction and are left out.
        top: number of tensors that count, those with the largest norms in the sent update; 0: all of them.
    """

    scope: Literal["global", "layer"] = "global"
    top: int = 0

    def __post_init__(self) -> None:
        if self.scope not in ("global", "layer"):
            raise InputError(f"scope is '{self.scope}': choose 'global' or 'layer'")
        if self.top < 0:
            raise InputError(f"top is {self.top}: it must be at least 0")

    def prepare(self, sent: Target) -> Target:
        """Return the sent directions, of length 1 in the precision's metric, and each tensor's share of the value."""
        update, precision = sent["sent"], sent.get("precision")
        if "bounds" in sent:
            certain = {k: ((bound == 0) | (bound < update[k].abs())).to(bound) for k, bound in sent["bounds"].items()}
            precision = certain if precision is None else {k: t * precision[k] for k, t in certain.items()}
        if 0 < self.top < len(update):
            kept = _of_largest_norm(update, self.top)
            precision = kept if precision is None else {k: t * precision[k] for k, t in kept.items()}
        weighed = update if precision is None else {k: t * precision[k] for k, t in update.items()}
        squares = self._pooled(_dots(update, weighed))
        lengths = squares.clamp(min=_TINY).sqrt()
        told = (squares > _TINY).to(squares)
        target: dict[str, Tensors] = {
            "along": {k: t / length for (k, t), length in zip(weighed.items(), lengths, strict=True)},
            "share": {"each": told / told.sum()},  # NaN for an update of zeros, and so is its distance
        }
        return target if precision is None else {**target, "precision": precision}

    def value_and_direction(self, fake: Tensors, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cosine distance and its derivative with respect to the guess's update."""
        along, precision, share = target["along"], target.get("precision"), target["share"]["each"]
        mine = fake if precision is None else {k: t * precision[k] for k, t in fake.items()}
        squares = self._pooled(_squares(fake) if precision is None else _dots(fake, mine))
        lengths = squares.clamp(min=_TINY).sqrt()
        cosines = self._pooled(_dots(fake, along)) / lengths
        toward = -(share if self.scope == "layer" else 1) / lengths
        # One new tensor each: for a large model's weights, memory costs more than arithmetic.
        direction = {
            k: torch.addcmul(t, mine[k], back).mul_(pull)
            for (k, t), back, pull in zip(along.items(), -cosines / lengths, toward, strict=True)
        }
        return (share * (1 - cosines)).sum(), direction

    def _pooled(self, each: Tensor) -> Tensor:
        """Return the tensors' values (T,); for the scope ``'global'``, their sum in place of each."""
        return each if self.scope == "layer" else each.sum().expand(each.shape)


def _of_largest_norm(tensors: Tensors, count: int) -> dict[str, Tensor]:
    """Return 1 for the `count` tensors with the largest norms, and 0 for the others."""
    squares = _squares(tensors)
    kept = torch.zeros_like(squares).scatter(0, squares.topk(count).indices, 1.0)
    return dict(zip(tensors, kept, strict=True))


def _dots(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([(a[k] * b[k]).sum() for k in a])


def _squares(a: Tensors) -> Tensor:
    return torch.stack([_square(t) for t in a.values()])


def _square(t: Tensor) -> Tensor:
    """Return the squared length, summed by rows, since one float32 sum over millions of elements loses digits."""
    return torch.linalg.vector_norm(t.flatten(1) if t.ndim > 1 else t, dim=-1).square().sum()
