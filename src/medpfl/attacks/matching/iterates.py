"""A search's iterates, every n-th one, kept for the auditor."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medpfl.core.trace import traced

if TYPE_CHECKING:
    from medpfl.attacks.matching.problem import Matching
    from medpfl.core.trace import Keeper

__all__ = ["Iterates"]


class Iterates:
    """Images of V victims at every n-th step of every restart, the first included; none unless requested.

    n is the smallest interval that keeps at most the requested number after the first.

    Args:
        victims: V.
        steps: steps per restart.
    """

    def __init__(self, victims: int, steps: int) -> None:
        self.every = -(-steps // traced()) if traced() else 0
        self.kept: list[list[Tensor]] = [[] for _ in range(victims)]

    def keeper(self, stage: Matching, victims: Tensor, done: int) -> Keeper | None:
        """Return a function that keeps a stage's iterates for some victims (A,), or ``None`` if none are requested.

        The stage begins after `done` steps.
        """
        if not self.every:
            return None
        steps = count(done)

        def keep(rows: Tensor, z: Tensor) -> None:
            number = next(steps)
            if number % self.every or (number == done and done):  # a stage begins where the last one ended
                return
            images = stage.split(z)[0].clamp(0, 1).detach().cpu()
            for victim, image in zip(victims[rows.cpu()].tolist(), images, strict=True):
                self.kept[victim].append(image)

        return keep

    def stacked(self) -> Tensor | None:
        """Return the images (V, T, N, C, H, W) in [0, 1]. The last image repeats for a victim that ended early."""
        longest = max(map(len, self.kept), default=0)
        if not longest or not all(self.kept):
            return None
        return torch.stack([torch.stack(own + own[-1:] * (longest - len(own))) for own in self.kept])
