"""Gradient quantization: a few levels a tensor, rounded at random without bias."""

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
    """Rounds each coordinate at random to one of the next two levels, so that its expectation stays.

    QSGD (Alistarh et al. 2017, arXiv:1610.02132, section 3): levels are ``norm * l / levels`` for
    l = 0 ... levels, with the sign beside; the norm is the Euclidean one of the group. Unbiased; the error of
    a coordinate is less than ``norm / levels``.

    Promises fewer bits on the wire, and nothing about privacy. Breaks: ROG.

    Attributes:
        levels: above zero, at least 1.
        scope: one norm for each tensor, or one for the whole update.

    Raises:
        InputError: no whole number of levels, or another word for `scope`.
    """

    levels: int = shown(16)
    scope: Scope = "layer"

    def __post_init__(self) -> None:
        if type(self.levels) is not int or self.levels < 1:
            raise InputError(f"levels is {self.levels}: it must be a whole number, at least 1")
        check_scope(self.scope)

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """The rounded update."""
        groups = [self._rounded(g, generator) for g in flat(value.tensors, self.scope)]
        return value.replace(unflat(groups, value.tensors)), state

    def _rounded(self, group: Tensor, generator: torch.Generator) -> Tensor:
        step = group.norm() / self.levels
        places = group.abs() / step.clamp(min=torch.finfo(group.dtype).tiny)
        drawn = torch.rand(group.shape, generator=generator, dtype=torch.float64).to(group)
        return group.sign() * step * (places + drawn).floor()

    def settled(self, first: bool) -> bool:
        """No: the step is read off the update."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """The variance of the rounding, on the average over a tensor; a group of zeros says nothing.

        The step is taken for the smallest value of the group that is not zero, a multiple of it if no coordinate was
        rounded to the first level. Under noise that was added later the step is not to be seen, and taken too small.
        """
        groups = flat(sent.tensors, self.scope)
        steps = [_step(g) for g in groups] * (1 if self.scope == "layer" else len(sent.tensors))
        precision = {
            name: torch.full_like(t, _precision(t, step))
            for (name, t), step in zip(sent.tensors.items(), steps, strict=True)
        }
        return (before or Channel()).then(precision=precision)


def _step(group: Tensor) -> float:
    """The smallest magnitude that is not zero; 0 of zeros."""
    size = group.abs().double()
    return float(size[size > 0].min()) if group.any() else 0.0


def _precision(tensor: Tensor, step: float) -> float:
    if not step:
        return 0.0
    return min(1 / max(rounding_variance(tensor, step), 1e-30), certain(tensor))
