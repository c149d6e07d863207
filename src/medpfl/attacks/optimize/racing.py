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
        growing: True: each cut comes after twice as many steps as the one before, so that all rounds cost the same.
        victims: victim of each row, where earlier cuts have dropped rows; ``None``: all rows are there.
    """

    starts: int
    every: int
    done: int = 0
    growing: bool = False
    victims: Tensor | None = None

    def beaten(self, loss: Tensor, step: int) -> Tensor:
        """Return a mask (rows,): prune the row at this step. `loss` (rows,) is each row's lowest so far."""
        if step and self._cuts(self.done + step) == self._cuts(self.done + step - 1):
            return torch.zeros_like(loss, dtype=torch.bool)
        return self.outranked(loss, step)

    def outranked(self, loss: Tensor, step: int) -> Tensor:
        """Return a mask (rows,): by all cuts up to this step, the row is among those to prune."""
        left = -(-self.starts // 2 ** self._cuts(self.done + step))
        if self.victims is None:
            order = loss.view(self.starts, -1).argsort(dim=0, stable=True)
            return (order.argsort(dim=0) >= left).flatten()
        victims = self.victims.to(loss.device)
        ranks = torch.zeros_like(victims)
        for victim in victims.unique():
            own = (victims == victim).nonzero()[:, 0]
            ranks[own] = loss[own].argsort(stable=True).argsort()
        return ranks >= left

    def _cuts(self, steps: int) -> int:
        """Return the number of cuts within the first steps."""
        rounds = steps // self.every
        return (rounds + 1).bit_length() - 1 if self.growing else rounds
