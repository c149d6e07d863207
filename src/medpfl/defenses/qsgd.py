"""QSGD: unbiased random quantization of the update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Update
from medpfl.defenses.compression import Scope, certain, check_scope, flat, rounding_variance, unflat

__all__ = ["QSGD"]


@dataclass(frozen=True, repr=False)
class QSGD(Defense):
    """Unbiased quantization: each coordinate is rounded at random to a neighboring level.

    QSGD (Alistarh et al. 2017, arXiv:1610.02132, section 3): levels are ``norm * l / levels`` for l = 0 ... levels,
    plus a sign, where ``norm`` is the group's Euclidean norm. The expectation is the coordinate itself, and the error
    is less than ``norm / levels``.

    Promises fewer bits to send, and nothing about privacy. Breaks: ROG.

    Attributes:
        levels: number of levels above zero, at least 1.
        scope: ``"layer"`` uses one norm per tensor, ``"global"`` one for the whole update.

    Raises:
        InputError: if `levels` is not a whole number, at least 1, or `scope` is unknown.
    """

    levels: int = shown(16)
    scope: Scope = "layer"

    def __post_init__(self) -> None:
        if type(self.levels) is not int or self.levels < 1:
            raise InputError(f"levels is {self.levels}: it must be a whole number, at least 1")
        check_scope(self.scope)

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Return the rounded update."""
        groups = [self._rounded(g, generator) for g in flat(value.tensors, self.scope)]
        return value.replace(unflat(groups, value.tensors)), state

    def _rounded(self, group: Tensor, generator: torch.Generator) -> Tensor:
        step = group.norm() / self.levels
        places = group.abs() / step.clamp(min=torch.finfo(group.dtype).tiny)
        drawn = torch.rand(group.shape, generator=generator, dtype=torch.float64).to(group)
        return group.sign() * step * (places + drawn).floor()

    def settled(self, first: bool) -> bool:
        """Return False: the step is inferred from the sent update."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the rounding's precision, from its mean variance over each tensor; 0 for a group of zeros.

        The step is estimated as the smallest nonzero magnitude in the group. It is overestimated, by a whole factor,
        if no coordinate was rounded to the first level, and underestimated if noise was added later.
        """
        groups = flat(sent.tensors, self.scope)
        steps = [_step(g) for g in groups] * (1 if self.scope == "layer" else len(sent.tensors))
        precision = {
            name: torch.full_like(t, _precision(t, step))
            for (name, t), step in zip(sent.tensors.items(), steps, strict=True)
        }
        return (before or Channel()).then(precision=precision)


def _step(group: Tensor) -> float:
    """Return the smallest nonzero magnitude, or 0 if all values are zero."""
    size = group.abs().double()
    return float(size[size > 0].min()) if group.any() else 0.0


def _precision(tensor: Tensor, step: float) -> float:
    if not step:
        return 0.0
    return min(1 / max(rounding_variance(tensor, step), 1e-30), certain(tensor))
