"""The typed training, performed."""

from __future__ import annotations

from pathlib import Path

from medpfl.core.experiments.training import Training
from medpfl.core.plan import Plan
from medpfl.training import train as training_module
from medpfl.training.report import Trained

__all__ = ["perform_training"]


def perform_training(
    training: Training, out: str | Path | None = None, force: bool = False, progress: bool = False
) -> Trained:
    """What a typed training describes in strings and numbers; see `medpfl.train`."""
    plan, options = Plan.among(training.model_dump())
    return training_module.train(**options, plan=plan, out=out, force=force, progress=progress)
