"""The iterates of a search, every n-th of them, for the auditor."""

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
    """Images of V victims at every n-th step of every start, the first included; nothing if none are asked for.

    Args:
        victims: V.
        steps: of one start; n is the least for which no more than asked for are kept after the first.
    """

    def __init__(self, victims: int, steps: int) -> None:
        self.every = -(-steps // traced()) if traced() else 0
        self.kept: list[list[Tensor]] = [[] for _ in range(victims)]

    def keeper(self, stage: Matching, victims: Tensor, done: int) -> Keeper | None:
        """Keeps the iterates of a stage of some victims (A,) that begins after so many steps."""
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
        """(V, T, N, C, H, W) in [0, 1]; of a victim that ended early, the last one again and again."""
        longest = max(map(len, self.kept), default=0)
        if not longest or not all(self.kept):
            return None
        return torch.stack([torch.stack(own + own[-1:] * (longest - len(own))) for own in self.kept])
