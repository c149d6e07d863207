"""Attacks, one file per paper. ``__all__`` is the registry."""

from medpfl.attacks.april import APRIL
from medpfl.attacks.cpl import CPL
from medpfl.attacks.deep_rgap import DeepRGAP
from medpfl.attacks.dlg import DLG
from medpfl.attacks.gradinv import GradInv
from medpfl.attacks.idlg import iDLG
from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.posterior import Posterior
from medpfl.attacks.rgap import RGAP
from medpfl.attacks.separation import Separation
from medpfl.attacks.worst_case import WorstCase

__all__ = [  # noqa: RUF022  (plainly sorted)
    "APRIL",
    "CPL",
    "DLG",
    "DeepRGAP",
    "GradInv",
    "GradientMatching",
    "Posterior",
    "RGAP",
    "Separation",
    "WorstCase",
    "iDLG",
]
