"""TopK: only the largest coordinates are sent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpfl.core.plan import Plan
from medpfl.core.types import Channel, Tensors, Update
from medpfl.defenses.compression import Sparsifier, flat, kept_count, largest, unflat

__all__ = ["TopK"]


@dataclass(frozen=True, repr=False)
class TopK(Sparsifier):
    """Top-k sparsification: only the share `keep` of largest coordinates is sent, the rest is zero.

    Deep gradient compression (Lin et al. 2018, arXiv:1712.01887, algorithm 1, without its momentum correction). Zhu et
    al. 2019 (arXiv:1906.08935, section 5.2) propose it against inversion. The notebooks' "20 to 90" percent by one
    global threshold correspond to ``keep`` 0.8 to 0.1.

    Promises less traffic, and nothing about privacy: the server learns the sent coordinates exactly, and that no other
    is larger than the smallest of them. Breaks: ROG, and FGLA, which reconstructs from 0.8 percent of the coordinates.

    Attributes:
        keep: the share of coordinates to send, above 0 and at most 1; at least one is sent.
        scope: ``'global'`` applies the share to the whole update, ``'layer'`` to each tensor.
        feedback: the part that was not sent is added to the next round's update before compression.
    """

    def compress(self, tensors: Tensors, generator: torch.Generator) -> Tensors:
        """Return the largest coordinates, and zeros for the others."""
        groups = flat(tensors, self.scope)
        return unflat([g * largest(g, self.keep) for g in groups], tensors)

    def settled(self, first: bool) -> bool:
        """Return False: which coordinates were sent is inferred from the sent update."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the channel: sent coordinates are exact, and the smallest of them bounds all others.

        If noise was added later, the largest noisy values are taken for the coordinates sent.
        """
        bounds = [self._bounds(group) for group in flat(sent.tensors, self.scope)]
        return (before or Channel()).then(bounds=unflat(bounds, sent.tensors))

    def _bounds(self, group: torch.Tensor) -> torch.Tensor:
        survived = largest(group, self.keep)
        threshold = group.abs().topk(kept_count(self.keep, len(group))).values[-1]
        return torch.where(survived, torch.zeros_like(group), threshold)
