"""The typed experiment, performed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medpfl.auditing.report import Report
from medpfl.auditing.run import audit
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel

__all__ = ["options_of", "perform"]


def perform(
    experiment: Experiment, out: str | Path | None = None, force: bool = False, progress: bool = False
) -> Report:
    """What an experiment describes in strings and numbers; see `medpfl.audit`. Of one model: without `rounds`."""
    return audit(**options_of(experiment), out=out, force=force, progress=progress)


def options_of(experiment: Experiment) -> dict[str, Any]:
    """An experiment as the arguments of `medpfl.audit`."""
    plan, options = Plan.among(experiment.model_dump(exclude={"rounds"}))
    threat = ThreatModel(tuple(options.pop("grant")))
    parts = {"attacks": options.pop("attack"), "defenses": options.pop("defense")}
    return {**options, **parts, "plan": plan, "threat": threat}
