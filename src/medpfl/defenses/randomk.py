"""Gradient compression: coordinates that are sent are drawn at random."""

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
    """Sends a uniformly drawn share `keep` of the coordinates and sets the others to zero.

    Random-k sparsification (Stich et al. 2018, arXiv:1809.07599, section 2). Without error feedback the
    survivors are divided by the share, so that the expectation is the update itself (unbiased); with it they
    are sent as they are.

    Promises nothing about privacy: the survivors are exact. Breaks: ROG and the others of `TopK`.

    Attributes:
        keep: the share of coordinates that survive, above 0 and at most 1; at least one does.
        scope: ``'global'``, of the whole update, or ``'layer'``, of each tensor.
        feedback: what was not sent is added to the next round's update before it is compressed.
    """

    def compress(self, tensors: Tensors, generator: torch.Generator) -> Tensors:
        """The survivors, and zeros."""
        return unflat([self._drawn(g, generator) for g in flat(tensors, self.scope)], tensors)

    def _drawn(self, group: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(group), generator=generator)[: kept_count(self.keep, len(group))]
        factor = torch.zeros_like(group).index_fill(0, chosen.to(group.device), self._factor(len(group)))
        return group * factor

    def _factor(self, size: int) -> float:
        return 1.0 if self.feedback else size / kept_count(self.keep, size)

    def settled(self, first: bool) -> bool:
        """No: which survived is read off the update."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """The factor, and which coordinates say nothing: those that are zero.

        Under noise that was added later, the largest of the noisy values are taken for the survivors.
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
