"""How far a guess's update is from the sent one, for one victim.

Each returns the value and, in closed form, its derivative with respect to the guess's update, so that
the network is differentiated twice only once. Values are relative (1 or less at a zero update, 0 at a
perfect match), so that one tolerance serves every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.spec import Part
from medpfl.core.types import Tensors

__all__ = ["Cosine", "Objective", "SquaredDistance"]

_TINY = 1e-30


@dataclass(frozen=True, repr=False)
class Objective(Part):
    """The distance of two updates of one victim, given what is known of each coordinate."""

    def value_and_direction(
        self, fake: Tensors, sent: Tensors, precision: Tensors | None, bounds: Tensors | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The distance (scalar), and its derivative by the guess's update.

        Args:
            fake: the update of the guess, after the channel's known part.
            sent: the update on the wire.
            precision: by coordinate, see `medpfl.core.types.Channel`; ``None``: the same everywhere.
            bounds: likewise; ``None``: 0.
        """
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class SquaredDistance(Objective):
    """Squared Euclidean distance, each layer weighted.

    Attributes:
        weighting: ``'none'`` is the plain distance of Zhu et al. 2019 (arXiv:1906.08935, equation 4);
            ``'layer'`` divides each tensor's part by the norm of that tensor of the sent update, which
            keeps large layers from hiding small ones.
    """

    weighting: Literal["none", "layer"] = "layer"

    def __post_init__(self) -> None:
        if self.weighting not in ("none", "layer"):
            raise InputError(f"weighting is '{self.weighting}': choose 'none' or 'layer'")

    def value_and_direction(
        self, fake: Tensors, sent: Tensors, precision: Tensors | None, bounds: Tensors | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of squares over the same of the sent update."""
        weight = self._weights(sent)
        scale = sum((weight[k] * _square(v, precision, k).sum() for k, v in sent.items()), torch.zeros(()))
        value, direction = torch.zeros_like(scale), {}
        for name, target in sent.items():
            residual = fake[name] - target
            if bounds is not None:
                residual = residual - residual.clamp(-bounds[name], bounds[name])
            pull = residual if precision is None else residual * precision[name]
            share = weight[name] / scale.clamp(min=_TINY)
            value = value + share * (residual * pull).sum()
            direction[name] = 2 * share * pull
        return value, direction

    def _weights(self, sent: Tensors) -> dict[str, Tensor]:
        if self.weighting == "none":
            return {name: target.new_ones(()) for name, target in sent.items()}
        norms = {name: target.square().sum().sqrt() for name, target in sent.items()}
        # A layer whose update vanishes must not get all the weight.
        floor = 1e-6 * torch.stack(list(norms.values())).max() + _TINY
        return {name: 1 / norm.clamp(min=floor) for name, norm in norms.items()}


def _square(value: Tensor, precision: Tensors | None, name: str) -> Tensor:
    return value.square() if precision is None else value.square() * precision[name]


@dataclass(frozen=True, repr=False)
class Cosine(Objective):
    """One minus the cosine of the angle between the updates (Geiping et al. 2020, arXiv:2003.14053, eq. 4).

    Bounds are not used: an angle has no coordinates that are free within an interval.
    """

    def value_and_direction(
        self, fake: Tensors, sent: Tensors, precision: Tensors | None, bounds: Tensors | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The distance of directions, under the precision as metric."""
        weighed = sent if precision is None else {k: v * precision[k] for k, v in sent.items()}
        mine = fake if precision is None else {k: v * precision[k] for k, v in fake.items()}
        dot = _dot(fake, weighed)
        fake_norm = _dot(fake, mine).clamp(min=_TINY).sqrt()
        sent_norm = _dot(sent, weighed).clamp(min=_TINY).sqrt()
        cosine = dot / (fake_norm * sent_norm)
        along, back = -1 / (fake_norm * sent_norm), cosine / fake_norm.square()
        return 1 - cosine, {k: along * weighed[k] + back * mine[k] for k in sent}


def _dot(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([(a[k] * b[k]).sum() for k in a]).sum()
