"""Successive halving: which starts go on, from what their objectives say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Race"]


@dataclass(frozen=True, eq=False)
class Race:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943, figure 1) of the starts of each victim.

    Only the attack's own objective decides, at the best point of each start so far, among the starts of one victim.

    Attributes:
        starts: R of each of A victims; row ``r * A + a`` is start r of victim a.
        every: steps from one cut to the next, at which the worse half leaves (of an odd number, the lesser half).
        done: steps before those that are counted here.
    """

    starts: int
    every: int
    done: int = 0

    def beaten(self, loss: Tensor, step: int) -> Tensor:
        """(R * A,) the rows to give up after so many steps, by the least objective (R * A,) of each so far."""
        if step and (self.done + step) % self.every:
            return torch.zeros_like(loss, dtype=torch.bool)
        left = -(-self.starts // 2 ** ((self.done + step) // self.every))
        order = loss.view(self.starts, -1).argsort(dim=0, stable=True)
        return (order.argsort(dim=0) >= left).flatten()
