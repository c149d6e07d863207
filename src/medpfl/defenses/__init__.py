"""Defenses, one per file. ``__all__`` is the registry."""

from medpfl.core.roles import NoDefense
from medpfl.defenses.client_dp import ClientDP
from medpfl.defenses.clipping import Clipping
from medpfl.defenses.dpsgd import DPSGD
from medpfl.defenses.gaussian import GaussianNoise
from medpfl.defenses.homomorphic import HomomorphicAggregation
from medpfl.defenses.laplace import LaplaceNoise
from medpfl.defenses.localdp import LocalDP
from medpfl.defenses.mixup import Mixup
from medpfl.defenses.outpost import Outpost
from medpfl.defenses.percentile import PercentilePrivacy
from medpfl.defenses.precode import PRECODE
from medpfl.defenses.qsgd import QSGD
from medpfl.defenses.randomk import RandomK
from medpfl.defenses.secagg import SecAggPlus
from medpfl.defenses.signs import Signs
from medpfl.defenses.soteria import Soteria
from medpfl.defenses.svt import SVTPrivacy
from medpfl.defenses.topk import TopK

__all__ = [  # noqa: RUF022
    "ClientDP",
    "Clipping",
    "DPSGD",
    "GaussianNoise",
    "HomomorphicAggregation",
    "LaplaceNoise",
    "LocalDP",
    "Mixup",
    "NoDefense",
    "Outpost",
    "PRECODE",
    "PercentilePrivacy",
    "QSGD",
    "RandomK",
    "SVTPrivacy",
    "SecAggPlus",
    "Signs",
    "Soteria",
    "TopK",
]
