"""Gradient compression: only the largest coordinates are sent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpfl.core.plan import Plan
from medpfl.core.types import Channel, Tensors, Update
from medpfl.defenses.compression import Sparsifier, flat, kept_count, largest, unflat

__all__ = ["TopK"]


@dataclass(frozen=True, repr=False)
class TopK(Sparsifier):
    """Sets all but the share `keep` of the coordinates, those of largest magnitude, to zero.

    Deep gradient compression (Lin et al. 2018, arXiv:1712.01887, algorithm 1, without its momentum
    correction), which Zhu et al. 2019 (arXiv:1906.08935, section 5.2) propose against inversion; the
    notebooks' "20 to 90" percent by one global threshold are ``keep`` 0.8 to 0.1.

    Promises fewer numbers on the wire, and nothing about privacy: the server learns the survivors exactly and
    that all others are at most the smallest of them. Breaks: ROG and FGLA, the latter at 0.8 percent.

    Attributes:
        keep: the share of coordinates that survive, above 0 and at most 1; at least one does.
        scope: ``'global'``, of the whole update, or ``'layer'``, of each tensor.
        feedback: what was not sent is added to the next round's update before it is compressed.
    """

    def compress(self, tensors: Tensors, generator: torch.Generator) -> Tensors:
        """The survivors, and zeros."""
        groups = flat(tensors, self.scope)
        return unflat([g * largest(g, self.keep) for g in groups], tensors)

    def settled(self, first: bool) -> bool:
        """No: which survived is read off the update."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """The survivors as they are; all others are bounded by the smallest of them.

        Under noise that was added later, the largest of the noisy values are taken for the survivors.
        """
        bounds = [self._bounds(group) for group in flat(sent.tensors, self.scope)]
        return (before or Channel()).then(bounds=unflat(bounds, sent.tensors))

    def _bounds(self, group: torch.Tensor) -> torch.Tensor:
        survived = largest(group, self.keep)
        threshold = group.abs().topk(kept_count(self.keep, len(group))).values[-1]
        return torch.where(survived, torch.zeros_like(group), threshold)
