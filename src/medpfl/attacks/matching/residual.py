"""Labels and gradient-matching loss of guesses that were found by other means."""

from __future__ import annotations

import torch
from torch import Tensor

from medpfl.attacks.matching.label_targets import label_vectors
from medpfl.attacks.matching.labels import LastLayer
from medpfl.attacks.matching.objectives import Objective, SquaredDistance
from medpfl.attacks.matching.priors import NoPrior, Prior
from medpfl.attacks.matching.problem import Matching
from medpfl.attacks.optimize.coordinates import Pixels
from medpfl.core.types import Observation

__all__ = ["judged"]


def judged(
    seen: Observation,
    guesses: Tensor,
    classes: Tensor | None = None,
    objective: Objective = SquaredDistance(),
    prior: Prior = NoPrior(),
) -> tuple[Tensor, Tensor]:
    """Return classes (V, N), granted or inferred, and the objective (V,) at the guesses.

    Args:
        seen: observation.
        guesses: (V, N, C, H, W), finite.
        classes: (V, N) classes that the attack read, in the order of the guesses; ``None``: granted or inferred here.
        objective: distance between the guesses' updates and the sent ones; by default the relative squared distance.
        prior: term for the images alone.
    """
    dummy = torch.full_like(guesses[:1, 0], 0.5)
    if classes is None:
        classes = seen.labels if seen.labels is not None else LastLayer().infer(seen, dummy)
    assert classes is not None  # analytic attacks take models that end in a linear layer, which have no masks
    problem = Matching(seen, label_vectors(seen, classes, dummy), objective, prior, basis=Pixels())
    loss, _ = problem.evaluate(problem.join(guesses, None), torch.arange(len(seen), device=guesses.device))
    return classes, loss
