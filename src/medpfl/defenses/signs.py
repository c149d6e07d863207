"""Gradient quantization: one bit a coordinate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Channel, Tensors, Update
from medpfl.defenses.compression import Compressor, Scope, check_scope, flat, unflat

__all__ = ["Signs"]

_SHARPNESS = 0.1
"""Width of the smooth sign that is disclosed, in units of the mean magnitude."""


@dataclass(frozen=True, repr=False)
class Signs(Compressor):
    """Sends the signs, times the mean magnitude: ``mean(|x|) * sign(x)``.

    Scaled sign compression with error feedback (Karimireddy et al. 2019, arXiv:1901.09847, algorithm 1);
    without feedback it is the scaled form of signSGD (Bernstein et al. 2018, arXiv:1802.04434), biased.

    Promises one bit a coordinate, and nothing about privacy. Breaks: no dedicated one known to us.

    Attributes:
        scope: one mean for each tensor, or one for the whole update.
        feedback: what was not sent is added to the next round's update; part of the method, so on.
        magnitude: sent in place of the mean magnitude; ``None``: that. With 1 it is signSGD without a scale, whose
            first step is that of Adam.

    Raises:
        InputError: another word for `scope`, or a magnitude that is not above 0.
    """

    scope: Scope = "layer"
    feedback: bool = True
    magnitude: float | None = None

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if self.magnitude is not None and not 0 < self.magnitude < inf:
            raise InputError(f"magnitude is {self.magnitude}: it must be above 0")

    def compress(self, tensors: Tensors, generator: torch.Generator) -> Tensors:
        """Signs times the magnitude."""
        return self._signs(tensors)

    def _signs(self, tensors: Tensors) -> Tensors:
        return unflat([self._size(g) * g.sign() for g in flat(tensors, self.scope)], tensors)

    def _size(self, group: Tensor) -> Tensor | float:
        return group.abs().mean() if self.magnitude is None else self.magnitude

    def settled(self, first: bool) -> bool:
        """No: the mean of signs is not the sign of the mean."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """The map itself, with a smooth function in place of the sign so that it has a derivative.

        After parts that add or remove something the magnitude is taken from the sent update, and what a sign
        leaves of their noise and errors is not described further.
        """
        if before is None:
            return replace(Channel().then(self._like_sent), exact=self._signs)
        if before.precision is None and before.bounds is None:
            return before.then(self._like_sent)
        known = {name: t.abs() for name, t in sent.tensors.items()}
        return replace(before, precision=None, bounds=None).then(self._of_magnitude, known=known)

    def _like_sent(self, tensors: Tensors) -> Tensors:
        groups = flat(tensors, self.scope)
        return unflat([self._size(g) * _smooth_sign(g) for g in groups], tensors)

    def _of_magnitude(self, tensors: Tensors, known: Tensors) -> Tensors:
        signs = unflat([_smooth_sign(g) for g in flat(tensors, self.scope)], tensors)
        return {name: sign * known[name] for name, sign in signs.items()}


def _smooth_sign(group: Tensor) -> Tensor:
    width = _SHARPNESS * group.abs().mean()
    return group * (group.square() + width.square() + torch.finfo(group.dtype).tiny).rsqrt()
