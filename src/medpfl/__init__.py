"""MedPFL measures which images a federated-learning server can reconstruct from a hospital's updates."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medpfl.assumptions.result import Realism as Realism
    from medpfl.assumptions.run import realism as realism
    from medpfl.auditing.records.run import audit_record as audit_record
    from medpfl.auditing.report import Comparison as Comparison
    from medpfl.auditing.report import Report as Report
    from medpfl.auditing.report import compare as compare
    from medpfl.auditing.run import audit as audit
    from medpfl.core.channels.channel import Channel as Channel
    from medpfl.core.errors import InputError as InputError
    from medpfl.core.experiments.groups import Cohort as Cohort
    from medpfl.core.experiments.groups import Criteria as Criteria
    from medpfl.core.experiments.groups import Reading as Reading
    from medpfl.core.experiments.groups import Run as Run
    from medpfl.core.experiments.groups import Victims as Victims
    from medpfl.core.experiments.schedule import Schedule as Schedule
    from medpfl.core.plan import Plan as Plan
    from medpfl.core.records.origin import Pixels as Pixels
    from medpfl.core.records.record import Record as Record
    from medpfl.core.roles.defense import Defense as Defense
    from medpfl.core.roles.parts import Attack as Attack
    from medpfl.core.roles.parts import DataSource as DataSource
    from medpfl.core.roles.parts import Metric as Metric
    from medpfl.core.roles.parts import Model as Model
    from medpfl.core.rounds import Round as Round
    from medpfl.core.threat import ThreatModel as ThreatModel
    from medpfl.core.types import Batch as Batch
    from medpfl.core.types import Finding as Finding
    from medpfl.core.types import Observation as Observation
    from medpfl.core.types import Reconstruction as Reconstruction
    from medpfl.core.types import Update as Update
    from medpfl.core.types import View as View
    from medpfl.core.types import Weights as Weights
    from medpfl.evaluation.run import Evaluation as Evaluation
    from medpfl.evaluation.run import evaluate as evaluate
    from medpfl.federated.local import local_update as local_update
    from medpfl.federated.ready import prepare as prepare
    from medpfl.federation.result import Federation as Federation
    from medpfl.federation.run import audit_federation as audit_federation
    from medpfl.inspection.check import ModelCheck as ModelCheck
    from medpfl.inspection.check import check_model as check_model
    from medpfl.recording.record import record as record
    from medpfl.reproduction.collection import Reproduction as Reproduction
    from medpfl.reproduction.run import reproduce as reproduce
    from medpfl.reproduction.scale import Scale as Scale
    from medpfl.tradeoff.result import FrontierResult as FrontierResult
    from medpfl.tradeoff.run import frontier as frontier
    from medpfl.training.leakage import Leakage as Leakage
    from medpfl.training.leakage import leakage as leakage
    from medpfl.training.report import Trained as Trained
    from medpfl.training.train import train as train

__version__: str

_PLACES = {
    "Attack": "core.roles.parts",
    "Batch": "core.types",
    "Channel": "core.channels.channel",
    "Cohort": "core.experiments.groups",
    "Comparison": "auditing.report",
    "Criteria": "core.experiments.groups",
    "DataSource": "core.roles.parts",
    "Defense": "core.roles.defense",
    "Evaluation": "evaluation.run",
    "Federation": "federation.result",
    "Finding": "core.types",
    "FrontierResult": "tradeoff.result",
    "InputError": "core.errors",
    "Leakage": "training.leakage",
    "Metric": "core.roles.parts",
    "Model": "core.roles.parts",
    "ModelCheck": "inspection.check",
    "Observation": "core.types",
    "Pixels": "core.records.origin",
    "Plan": "core.plan",
    "Reading": "core.experiments.groups",
    "Realism": "assumptions.result",
    "Reconstruction": "core.types",
    "Record": "core.records.record",
    "Report": "auditing.report",
    "Reproduction": "reproduction.collection",
    "Round": "core.rounds",
    "Run": "core.experiments.groups",
    "Scale": "reproduction.scale",
    "Schedule": "core.experiments.schedule",
    "ThreatModel": "core.threat",
    "Trained": "training.report",
    "Update": "core.types",
    "Victims": "core.experiments.groups",
    "View": "core.types",
    "Weights": "core.types",
    "audit": "auditing.run",
    "audit_federation": "federation.run",
    "audit_record": "auditing.records.run",
    "check_model": "inspection.check",
    "compare": "auditing.report",
    "evaluate": "evaluation.run",
    "frontier": "tradeoff.run",
    "leakage": "training.leakage",
    "local_update": "federated.local",
    "prepare": "federated.ready",
    "realism": "assumptions.run",
    "record": "recording.record",
    "reproduce": "reproduction.run",
    "train": "training.train",
}

__all__ = [
    "Attack",
    "Batch",
    "Channel",
    "Cohort",
    "Comparison",
    "Criteria",
    "DataSource",
    "Defense",
    "Evaluation",
    "Federation",
    "Finding",
    "FrontierResult",
    "InputError",
    "Leakage",
    "Metric",
    "Model",
    "ModelCheck",
    "Observation",
    "Pixels",
    "Plan",
    "Reading",
    "Realism",
    "Reconstruction",
    "Record",
    "Report",
    "Reproduction",
    "Round",
    "Run",
    "Scale",
    "Schedule",
    "ThreatModel",
    "Trained",
    "Update",
    "Victims",
    "View",
    "Weights",
    "audit",
    "audit_federation",
    "audit_record",
    "check_model",
    "compare",
    "evaluate",
    "frontier",
    "leakage",
    "local_update",
    "prepare",
    "realism",
    "record",
    "reproduce",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that ``import medpfl`` is fast."""
    if name == "__version__":
        return import_module("medpfl.core.versions").version_of("medpfl")
    if name not in _PLACES:
        raise AttributeError(f"module 'medpfl' has no attribute '{name}'")
    return getattr(import_module(f"medpfl.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
