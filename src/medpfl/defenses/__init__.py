"""Defenses: a file each. ``__all__`` is the registry."""

from medpfl.defenses.gaussian import GaussianNoise
from medpfl.defenses.laplace import LaplaceNoise
from medpfl.defenses.none import NoDefense

__all__ = ["GaussianNoise", "LaplaceNoise", "NoDefense"]
