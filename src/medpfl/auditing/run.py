"""Entry points of an audit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from medpfl.auditing.execution import WORK, executed, images_of
from medpfl.auditing.forecast.plan import foreseen_of
from medpfl.auditing.isolating import Isolation, isolating
from medpfl.auditing.records.run import RecordCase, record_options
from medpfl.auditing.report import Report
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.victims import fitted
from medpfl.core.errors import InputError
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.groups import Criteria, Run, Victims
from medpfl.core.experiments.limits import USUAL_IMAGES
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack, DataSource, Defense, Model
from medpfl.core.threat import HONEST, ThreatModel
from medpfl.data.images import LabelledImages
from medpfl.engines.choice import ready
from medpfl.inputs.parts import attacks_of, defenses_given, is_record, model_of, partition_of
from medpfl.inputs.spelling import is_pattern, path_of
from medpfl.recording.folder import truth_given
from medpfl.runs.outlook import Outlook
from medpfl.runs.pulse import pulsing

__all__ = ["AuditCase", "audit", "case_of", "foresee", "perform"]


def audit(  # noqa: PLR0913  (a public function: each argument is a group or a list of its own)
    model: str | Path | Model | nn.Module = Experiment.model,
    data: str | Path | DataSource | LabelledImages = Experiment.data,
    *,
    attacks: Sequence[str | Attack] = (),
    defenses: Sequence[str | Defense] = (),
    plan: Plan = Experiment.plan,
    threat: ThreatModel = HONEST,
    weights: str | Path | None = None,
    victims: Victims = Experiment.victims,
    criteria: Criteria = Experiment.criteria,
    run: Run = Experiment.run,
) -> Report:
    """Measure how well a server can reconstruct these images from clients' updates.

    The audit always includes the undefended control, and also runs every attack on random updates. With ``run.out``,
    finished work survives a kill: the same call continues where it stopped.

    Args:
        model: a spec, ``file.py:name`` or ``package.module:name``, the directory of a training or of one of its
            rounds, a `Model`, or a network that maps (N, C, H, W) in [0, 1] to logits (N, K).
        data: ``"samples"``, a folder of class folders, a source, or images.
        attacks, defenses: specs or objects. Without attacks, `medpfl.attacks.WorstCase` runs with as many evaluations
            as ``run.minutes`` allow. The undefended control is added to the defenses.
        plan: every client's local training, by default FedSGD on one image; each update holds ``plan.images`` images.
        threat: the attacker's grants; none by default. A defense that discloses something is tested against two
            attackers, a naive and an adaptive one; the grant ``defense`` skips the first, ``naive`` skips the second.
        weights: a weights file for the model.
        victims: number of target images, and how they are read and distributed among clients.
        criteria: thresholds and measures behind the verdict.
        run: seed, device, run directory and so on.

    Raises:
        InputError: something cannot work; raised before any attack runs.

    >>> report = audit("LeNet('idlg')", attacks=["iDLG(steps=3)"], victims=Victims(images=3))
    >>> [(cell.attack, cell.defense, cell.images) for cell in report.summary]
    [('iDLG(steps=3)', 'NoDefense()', 3)]
    """
    return AuditCase(model, data, attacks, defenses, plan, threat, weights, victims, criteria, run).report()


@dataclass(frozen=True)
class AuditCase:
    """A model and images, and how to audit them: the arguments of `audit`.

    Attributes:
        model, data, attacks, defenses, plan, threat, weights, victims, criteria, run: as in `audit`.
        images: number of images to attack if `victims` states none and there are as many.
        whole: as in `Scenario`.
    """

    model: str | Path | Model | nn.Module
    data: str | Path | DataSource | LabelledImages
    attacks: Sequence[str | Attack]
    defenses: Sequence[str | Defense]
    plan: Plan
    threat: ThreatModel
    weights: str | Path | None
    victims: Victims
    criteria: Criteria
    run: Run
    images: int = USUAL_IMAGES
    whole: bool = False

    def report(self) -> Report:
        """Run the audit, and return its report."""
        with pulsing(self.run.visible), self.scene() as (scenario, isolation, place):
            return executed(scenario, isolation, place)

    def outlook(self) -> Outlook:
        """Return the audit's plan; nothing is written."""
        with self.scene() as (scenario, isolation, place):
            return foreseen_of(scenario, isolation, place)

    @contextmanager
    def scene(self) -> Iterator[tuple[Scenario, Isolation, str]]:
        """Yield the scenario, its isolation, and the images' place, with the run's engine and threads ready."""
        data, run, victims = self.data, self.run, self.victims
        if isinstance(data, str | Path) and is_pattern(str(data)):
            raise InputError(f"'{data}' is a pattern for several records: use medpfl.audit_federation(records, model)")
        if is_record(data):
            raise InputError(f"'{data}' is a record of an update: use medpfl.audit_record(record, truth, model)")
        given, recipe = defenses_given(self.defenses), model_of(self.model)
        partition = partition_of(victims.partition, victims.clients)
        with (  # before any image is read
            ready(run, *WORK),
            isolating(self.attacks, run.isolate, recipe, given) as isolation,
        ):
            found = images_of(data, victims, run)
            scenario = Scenario(
                model=recipe,
                weights=None if self.weights is None else Path(self.weights),
                data=found.images,
                source=found.source,
                attacks=attacks_of(isolation.attacks, isolation.worker),
                defenses=[one.part for one in given],
                threat=self.threat.knowing(found.images.gray),
                plan=self.plan,
                partition=partition,
                selection=fitted(victims, found.images, self.plan.images, self.images),
                criteria=self.criteria,
                run=run,
                reader=found.reader,
                recipe=isolation.recipe,
                whole=self.whole,
            )
            yield scenario, isolation, found.place


def perform(experiment: Experiment) -> Report:
    """Audit one model or record as an experiment describes it in strings and numbers."""
    found = _record_of(experiment)
    return (case_of(experiment) if found is None else found).report()


def foresee(experiment: Experiment) -> Outlook:
    """Return the plan of the audit that an experiment describes; nothing is written."""
    found = _record_of(experiment)
    return (case_of(experiment) if found is None else found).outlook()


def case_of(experiment: Experiment) -> AuditCase:
    """Return the audit of a model that an experiment describes."""
    if experiment.truth is not None:
        raise InputError("truth goes with a record of an update; without one, leave it out")
    return AuditCase(
        model=experiment.model,
        data=experiment.data,
        attacks=experiment.attack,
        defenses=experiment.defense,
        threat=experiment.threat,
        plan=experiment.plan,
        weights=experiment.weights,
        victims=experiment.victims,
        criteria=experiment.criteria,
        run=experiment.run,
    )


def _record_of(experiment: Experiment) -> RecordCase | None:
    """Return the audit of a record that an experiment describes; ``None`` if its data is no record."""
    if experiment.rounds is not None:
        raise InputError("this audits one model, but rounds were given: use medpfl.leakage for several rounds")
    if experiment.realism:
        raise InputError("this audits one case, but a realism meter was asked for: use medpfl.realism")
    if not is_record(experiment.data):
        return None
    truth = truth_given(experiment.truth, path_of(str(experiment.data)))
    if truth is None:
        raise InputError(
            "a record holds no images, and no truth file of its name lies in private-truth beside it: set --truth to "
            "the folder with the images behind it, or to that file"
        )
    if experiment.weights is not None:
        raise InputError("a record holds the client's initial weights: leave out --weights")
    return RecordCase(experiment.data, truth, **record_options(experiment))
