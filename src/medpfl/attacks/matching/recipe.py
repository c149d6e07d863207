"""The base class of attacks that are a search with a paper's settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpfl.attacks.matching.search import GradientMatching
from medpfl.core.roles import Attack
from medpfl.core.types import Observation, Reconstruction

__all__ = ["Recipe"]


@dataclass(frozen=True, repr=False)
class Recipe(Attack):
    """An attack that is one `GradientMatching`. Invalid settings raise an error when the attack is built."""

    def __post_init__(self) -> None:
        self.matching()

    def matching(self) -> GradientMatching:
        """Return the search."""
        raise NotImplementedError

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Reconstruct the images of each victim."""
        return self.matching()(seen, generator)
