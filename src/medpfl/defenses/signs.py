"""Signs: one bit per coordinate."""

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
"""Width of the disclosed smooth sign, in units of the mean magnitude."""


@dataclass(frozen=True, repr=False)
class Signs(Compressor):
    """Sign compression: each coordinate's sign times the mean magnitude, ``mean(|x|) * sign(x)``.

    Scaled sign compression with error feedback (Karimireddy et al. 2019, arXiv:1901.09847, algorithm 1). Without
    feedback it is the scaled, biased form of signSGD (Bernstein et al. 2018, arXiv:1802.04434).

    Promises one bit per coordinate, and nothing about privacy. Breaks: no dedicated one known to us.

    Attributes:
        scope: ``"layer"`` uses one mean per tensor, ``"global"`` one for the whole update.
        feedback: the part that was not sent is added to the next round's update. It belongs to the method and is on by
            default.
        magnitude: value to send instead of the mean magnitude; ``None``: the mean magnitude. With 1 it is signSGD
            without a scale, whose first step equals Adam's.

    Raises:
        InputError: if `scope` is unknown, or `magnitude` is not above 0.
    """

    scope: Scope = "layer"
    feedback: bool = True
    magnitude: float | None = None

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if self.magnitude is not None and not 0 < self.magnitude < inf:
            raise InputError(f"magnitude is {self.magnitude}: it must be above 0")

    def compress(self, tensors: Tensors, generator: torch.Generator) -> Tensors:
        """Return the signs times the magnitude."""
        return self._signs(tensors)

    def _signs(self, tensors: Tensors) -> Tensors:
        return unflat([self._size(g) * g.sign() for g in flat(tensors, self.scope)], tensors)

    def _size(self, group: Tensor) -> Tensor | float:
        return group.abs().mean() if self.magnitude is None else self.magnitude

    def settled(self, first: bool) -> bool:
        """Return False: the mean of signs is not the sign of the mean."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the compression itself, with a smooth function instead of the sign so that it has a derivative.

        If earlier parts add or remove something, the magnitude is taken from the sent update. How the sign changes
        their noise and errors is then not described any further.
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
