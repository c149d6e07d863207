"""Successive halving: restarts compete, and their objectives decide which continue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Race"]


@dataclass(frozen=True, eq=False)
class Race:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943, figure 1) among each victim's restarts.

    Restarts of one victim are compared by the attack's own objective alone, at each restart's best point so far.

    Attributes:
        starts: R restarts for each of A victims; row ``r * A + a`` is restart r of victim a.
        every: steps between two cuts. A cut drops the worse half (with an odd number of restarts, the smaller half).
        done: steps of earlier stages, not counted here.
    """

    starts: int
    every: int
    done: int = 0

    def beaten(self, loss: Tensor, step: int) -> Tensor:
        """Return a mask (R * A,): prune the row at this step. `loss` (R * A,) is each row's lowest so far."""
        if step and (self.done + step) % self.every:
            return torch.zeros_like(loss, dtype=torch.bool)
        left = -(-self.starts // 2 ** ((self.done + step) // self.every))
        order = loss.view(self.starts, -1).argsort(dim=0, stable=True)
        return (order.argsort(dim=0) >= left).flatten()
