"""Defenses: a file each. ``__all__`` is the registry."""

from medpfl.defenses.client_dp import ClientDP
from medpfl.defenses.clipping import Clipping
from medpfl.defenses.dpsgd import DPSGD
from medpfl.defenses.gaussian import GaussianNoise
from medpfl.defenses.laplace import LaplaceNoise
from medpfl.defenses.none import NoDefense
from medpfl.defenses.qsgd import QSGD
from medpfl.defenses.randomk import RandomK
from medpfl.defenses.signs import Signs
from medpfl.defenses.topk import TopK

__all__ = [  # noqa: RUF022
    "ClientDP",
    "Clipping",
    "DPSGD",
    "GaussianNoise",
    "LaplaceNoise",
    "NoDefense",
    "QSGD",
    "RandomK",
    "Signs",
    "TopK",
]
