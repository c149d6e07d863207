"""Gradient matching: the search behind most attacks. ``__all__`` is the registry of its parts."""

from medpfl.attacks.matching.constraints import Box, Free
from medpfl.attacks.matching.labels import Joint, LastLayer
from medpfl.attacks.matching.likelihood import Likelihood
from medpfl.attacks.matching.objectives import Cosine, SquaredDistance
from medpfl.attacks.matching.priors import ColorVariation, NoPrior, Smoothness, TotalVariation
from medpfl.attacks.matching.search import GradientMatching
from medpfl.attacks.matching.solved_start import Analytic
from medpfl.attacks.matching.stages import Stage
from medpfl.attacks.matching.starts import Normal, Patterned, Suited
from medpfl.attacks.optimize.coordinates import Blocks, Pixels, Spectral
from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.attacks.optimize.optimizer import SignedAdam

__all__ = [
    "LBFGS",
    "Analytic",
    "Blocks",
    "Box",
    "ColorVariation",
    "Cosine",
    "Free",
    "GradientMatching",
    "Joint",
    "LastLayer",
    "Likelihood",
    "NoPrior",
    "Normal",
    "Patterned",
    "Pixels",
    "SignedAdam",
    "Smoothness",
    "Spectral",
    "SquaredDistance",
    "Stage",
    "Suited",
    "TotalVariation",
]
