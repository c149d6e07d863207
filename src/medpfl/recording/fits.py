"""The fit of a cause: how well a record is explained by replays of the training under it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.types import Tensors
from medpfl.recording.check import Case, Cause
from medpfl.recording.replay import Replayed, gap

__all__ = ["FITS", "Fit", "changed", "cosine_of", "factor_of", "fit_of", "mean_of", "norm_of", "spread_of", "tried"]

FITS = 2e-3
"""Largest relative difference at which a cause explains a record exactly."""


@dataclass(frozen=True)
class Fit:
    """A cause, and how well it explains a record.

    Attributes:
        cause: the cause.
        difference: relative difference between the record and the nearest replay under this cause.
        spread: largest relative difference between two of its replays.
        offset: relative difference between the record and the mean of its replays.
    """

    cause: Cause
    difference: float
    spread: float = 0.0
    offset: float = 0.0

    @property
    def exact(self) -> bool:
        """True if the cause needs no guess of draws, and explains the record up to rounding."""
        return not self.spread and self.difference <= FITS


def tried(case: Case, cause: Cause, made: Sequence[Replayed]) -> Fit:
    """Return the fit of a cause to a record, from replays under this cause."""
    return fit_of(cause, case.record.update.tensors, made)


def fit_of(cause: Cause, sent: Tensors, made: Sequence[Replayed]) -> Fit:
    """Return the fit of a cause to an update, from replays under this cause."""
    difference = min(_finite(gap(sent, one.tensors)) for one in made)
    if len(made) == 1:
        return Fit(cause, difference)
    return Fit(cause, difference, spread_of(made), _finite(gap(mean_of(made), sent)))


def mean_of(made: Sequence[Replayed]) -> dict[str, Tensor]:
    """Return the mean update of replays."""
    return {k: torch.stack([one.tensors[k].double() for one in made]).mean(0) for k in made[0].tensors}


def spread_of(made: Sequence[Replayed]) -> float:
    """Return the largest relative difference between two replays; 0 for a single one."""
    pairs = itertools.combinations(made, 2)
    return max((_finite(gap(a.tensors, b.tensors)) for a, b in pairs), default=0.0)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def factor_of(sent: Tensors, other: Tensors) -> float:
    """Return the multiple of `other` that is nearest to `sent`."""
    both = sum(float((sent[k].double() * t.double()).sum()) for k, t in other.items())
    return both / max(sum(float(t.double().square().sum()) for t in other.values()), 1e-60)


def norm_of(tensors: Tensors) -> float:
    """Return the norm of an update, over all parameters."""
    return sum(float(t.double().square().sum()) for t in tensors.values()) ** 0.5


def cosine_of(sent: Tensors, other: Tensors) -> float:
    """Return the cosine similarity of two updates, over all parameters."""
    return factor_of(sent, other) * norm_of(other) / max(norm_of(sent), 1e-30)


def changed(case: Case, cause: Cause, **settings: float | bool) -> Fit:
    """Return the fit of other settings of the optimizer; none if the optimizer refuses them."""
    taken = case.steps.steps
    own = {id(step): step for step in taken}  # equal steps are mostly one object
    made = {key: replace(step, settings={**step.settings, **settings}) for key, step in own.items()}
    steps = [made[id(step)] for step in taken]
    try:
        return tried(case, cause, case.replays(steps=steps))
    except InputError:
        return Fit(cause, math.inf)
