"""The typed experiment, performed."""

from __future__ import annotations

from pathlib import Path

from medpfl.auditing.report import Report
from medpfl.auditing.run import audit
from medpfl.core.experiment import Experiment
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel

__all__ = ["perform"]


def perform(
    experiment: Experiment, out: str | Path | None = None, force: bool = False, progress: bool = False
) -> Report:
    """What an experiment describes in strings and numbers; see `medpfl.audit`."""
    options = experiment.model_dump()
    plan = Plan(**{k: options.pop(k) for k in list(options) if k in Plan.__dataclass_fields__})
    threat = ThreatModel(tuple(options.pop("grant")))
    attacks, defenses = options.pop("attack"), options.pop("defense")
    return audit(
        **options,
        attacks=attacks,
        defenses=defenses,
        threat=threat,
        plan=plan,
        out=out,
        force=force,
        progress=progress,
    )
