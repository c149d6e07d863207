"""RandomK: a random subset of coordinates is sent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.core.plan import Plan
from medpfl.core.types import Channel, Tensors, Update
from medpfl.defenses.compression import (
    Sparsifier,
    certain,
    flat,
    kept_count,
    largest,
    unflat,
)

__all__ = ["RandomK"]


@dataclass(frozen=True, repr=False)
class RandomK(Sparsifier):
    """Random-k sparsification: a random share `keep` of the coordinates is sent, the others are zero.

    Random-k (Stich et al. 2018, arXiv:1809.07599, section 2) draws the coordinates uniformly. Without error feedback,
    the coordinates sent are divided by the share, which makes the result unbiased; with feedback they are sent as they
    are.

    Promises nothing about privacy: the coordinates sent are exact. Breaks: ROG and the others listed for `TopK`.

    Attributes:
        keep: the share of coordinates to send, above 0 and at most 1; at least one is sent.
        scope: ``'global'`` applies the share to the whole update, ``'layer'`` to each tensor.
        feedback: the part that was not sent is added to the next round's update before compression.
    """

    def compress(self, tensors: Tensors, generator: torch.Generator) -> Tensors:
        """Return the drawn coordinates, and zeros for the others."""
        return unflat([self._drawn(g, generator) for g in flat(tensors, self.scope)], tensors)

    def _drawn(self, group: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(group), generator=generator)[: kept_count(self.keep, len(group))]
        factor = torch.zeros_like(group).index_fill(0, chosen.to(group.device), self._factor(len(group)))
        return group * factor

    def _factor(self, size: int) -> float:
        return 1.0 if self.feedback else size / kept_count(self.keep, size)

    def settled(self, first: bool) -> bool:
        """Return False: which coordinates were drawn is inferred from the sent update."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the scaling factor, and precision 0 for coordinates that are zero.

        If noise was added later, the largest noisy values are taken for the coordinates sent.
        """
        groups = flat(sent.tensors, self.scope)
        factors = unflat([torch.full_like(g, self._factor(len(g))) for g in groups], sent.tensors)
        by_name = {name: float(t.flatten()[0]) for name, t in factors.items()}
        precision = unflat([self._precision(g) for g in groups], sent.tensors)

        def apply(tensors: Tensors) -> Tensors:
            return {name: t * by_name[name] for name, t in tensors.items()}

        return (before or Channel()).then(apply, gain=1 if self.feedback else 1 / self.keep, precision=precision)

    def _precision(self, group: Tensor) -> Tensor:
        survived = largest(group, self.keep) & (group != 0)
        return survived * torch.full_like(group, certain(group))
