"""Attacks: a file per paper, over `medpfl.attacks.matching`. ``__all__`` is the registry."""

from medpfl.attacks.cpl import CPL
from medpfl.attacks.dlg import DLG
from medpfl.attacks.gradinv import GradInv
from medpfl.attacks.idlg import iDLG
from medpfl.attacks.matching import GradientMatching

__all__ = ["CPL", "DLG", "GradInv", "GradientMatching", "iDLG"]
