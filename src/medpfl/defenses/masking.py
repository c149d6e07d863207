"""Masks for secure aggregation: one per client, and one per pair of neighbors, which cancels in the sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Masks", "ring"]

_SEEDS = 2**62


def ring(clients: int, shares: int, generator: torch.Generator) -> list[set[int]]:
    """Draw each client's neighbors on a ring in random order: itself, and equally many on either side."""
    order = torch.randperm(clients, generator=generator).tolist()
    around: list[set[int]] = [set() for _ in range(clients)]
    for place, client in enumerate(order):
        around[client] = {order[(place + step) % clients] for step in range(-(shares // 2), shares // 2 + 1)}
    return around


class Masks:
    """Masks (size,) with elements uniform modulo `modulus`, each drawn from its own seed.

    Args:
        neighbors: each client's neighbors, including itself.
        size: number of elements in a mask.
        modulus: modulus, above 1.
        generator: source of the seeds.
    """

    def __init__(self, neighbors: Sequence[set[int]], size: int, modulus: int, generator: torch.Generator) -> None:
        self.neighbors, self.size, self.modulus = neighbors, size, modulus
        pairs = [(i, j) for i, own in enumerate(neighbors) for j in sorted(own) if i < j]
        seeds = torch.randint(_SEEDS, (len(neighbors) + len(pairs),), generator=generator).tolist()
        self._own = seeds[: len(neighbors)]
        self._shared = dict(zip(pairs, seeds[len(neighbors) :], strict=True))

    def of(self, client: int) -> Tensor:
        """Return all that a client adds: its own mask, plus or minus each mask that it shares with a neighbor."""
        return self._mask(self._own[client]) + self._pairwise(client, self.neighbors[client])

    def left(self, stayed: Sequence[int]) -> Tensor:
        """Return the masks that do not cancel in the sum over `stayed`; the server rebuilds them from key shares."""
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
