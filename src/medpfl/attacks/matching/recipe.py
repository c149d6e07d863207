"""What attacks have in common that are a search with parts chosen by a paper."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpfl.attacks.matching.search import GradientMatching
from medpfl.core.roles import Attack
from medpfl.core.types import Observation, Reconstruction

__all__ = ["Recipe"]


@dataclass(frozen=True, repr=False)
class Recipe(Attack):
    """An attack that is one `GradientMatching`; settings that this refuses are refused when they are given."""

    def __post_init__(self) -> None:
        self.matching()

    def matching(self) -> GradientMatching:
        """The search that it is."""
        raise NotImplementedError

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """The attack."""
        return self.matching()(seen, generator)
