"""The plans of ``--dry-run``, made below the command line. Imports torch only when a plan is made."""

from __future__ import annotations

from pathlib import Path

from medpfl.cli.running import LOADING
from medpfl.core.errors import InputError
from medpfl.core.experiments.evaluation import Evaluating
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.training import Training
from medpfl.core.progress import phase
from medpfl.reproduction.scale import Studies
from medpfl.runs.outlook import Outlook

__all__ = ["foresee_audits", "foresee_frontier", "foresee_standard", "foresee_studies", "foresee_training"]


def foresee_audits(experiment: Experiment) -> Outlook:
    """Return the plan of an audit, of audits over rounds or over assumptions, or of a federation's audits."""
    with phase(LOADING):
        from medpfl.auditing.run import foresee
        from medpfl.federation.folders import is_federation

    if is_federation(experiment.data):
        from medpfl.federation.run import foresee_federation

        return foresee_federation(experiment)
    if experiment.realism:
        from medpfl.assumptions.run import foresee_realism

        return foresee_realism(experiment)
    if experiment.rounds is not None:
        from medpfl.training.leakage import foresee_leakage

        return foresee_leakage(experiment)
    return foresee(experiment)


def foresee_standard(asked: Evaluating) -> Outlook:
    """Return the plan of a standard evaluation."""
    with phase(LOADING):
        from medpfl.evaluation.run import foresee_evaluation

    return foresee_evaluation(asked)


def foresee_training(training: Training) -> Outlook:
    """Return the plan of a training."""
    with phase(LOADING):
        from medpfl.training.train import foresee

    return foresee(training)


def foresee_frontier(experiment: Frontier) -> Outlook:
    """Return the plan of a frontier."""
    with phase(LOADING):
        from medpfl.tradeoff.run import foresee

    return foresee(experiment)


def foresee_studies(asked: Studies) -> Outlook:
    """Return the plan of a reproduction.

    Raises:
        InputError: tables are to be made again from rows, which needs no plan.
    """
    if asked.from_:
        raise InputError("--from runs nothing: leave out --dry-run")
    with phase(LOADING):
        from medpfl.cli.config_files import mapping_of
        from medpfl.reproduction.run import foresee

    sets = mapping_of(asked.sets) if asked.sets else {}
    return foresee(asked, {name: Path(path) for name, path in sets.items()})
