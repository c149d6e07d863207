"""The masks of secure aggregation: each client's own, and one of each pair of neighbors that cancels in the sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Masks", "ring"]

_SEEDS = 2**62


def ring(clients: int, shares: int, generator: torch.Generator) -> list[set[int]]:
    """Each client's neighbors on a ring in random order, itself included: half of them on either side."""
    order = torch.randperm(clients, generator=generator).tolist()
    around: list[set[int]] = [set() for _ in range(clients)]
    for place, client in enumerate(order):
        around[client] = {order[(place + step) % clients] for step in range(-(shares // 2), shares // 2 + 1)}
    return around


class Masks:
    """Masks (size,) that are uniform modulo a number, each from a seed of its own.

    Args:
        neighbors: of each client, itself included.
        size: of a mask.
        modulus: above 1.
        generator: of the seeds.
    """

    def __init__(self, neighbors: Sequence[set[int]], size: int, modulus: int, generator: torch.Generator) -> None:
        self.neighbors, self.size, self.modulus = neighbors, size, modulus
        pairs = [(i, j) for i, own in enumerate(neighbors) for j in sorted(own) if i < j]
        seeds = torch.randint(_SEEDS, (len(neighbors) + len(pairs),), generator=generator).tolist()
        self._own = seeds[: len(neighbors)]
        self._shared = dict(zip(pairs, seeds[len(neighbors) :], strict=True))

    def of(self, client: int) -> Tensor:
        """What a client adds: its own mask, and those that it shares, with a sign."""
        return self._mask(self._own[client]) + self._pairwise(client, self.neighbors[client])

    def left(self, stayed: Sequence[int]) -> Tensor:
        """What is left of the masks in the sum over the clients that stayed: from the shares of the others' keys."""
        silent = set(range(len(self.neighbors))) - set(stayed)
        left = torch.zeros(self.size, dtype=torch.int64)
        for client in stayed:
            left = left + self._mask(self._own[client]) + self._pairwise(client, self.neighbors[client] & silent)
        return left % self.modulus

    def _pairwise(self, client: int, others: set[int]) -> Tensor:
        total = torch.zeros(self.size, dtype=torch.int64)
        for other in others - {client}:
            mask = self._mask(self._shared[min(client, other), max(client, other)])
            total = (total + (mask if client > other else -mask)) % self.modulus
        return total

    def _mask(self, seed: int) -> Tensor:
        return torch.randint(self.modulus, (self.size,), generator=torch.Generator().manual_seed(seed))
