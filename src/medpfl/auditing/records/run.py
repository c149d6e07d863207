"""Entry points of the audit of one recorded update: its check, and its attacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from medpfl.auditing.aggregation import aggregates
from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.execution import WORK, checked, executed, images_of
from medpfl.auditing.forecast.plan import foreseen_of
from medpfl.auditing.isolating import Isolation, isolating
from medpfl.auditing.player import Player
from medpfl.auditing.records.recorded import (
    InOrder,
    Recorded,
    check_images,
    found_in,
    named_as,
    read,
    relabel,
    told_of,
    unsent,
)
from medpfl.auditing.report import Report
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.settings import record_difference
from medpfl.core.errors import InputError
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.groups import Criteria, Reading, Run, Victims
from medpfl.core.experiments.settings import Json
from medpfl.core.experiments.signatures import taking
from medpfl.core.messages import say
from medpfl.core.records.record import Record
from medpfl.core.roles import NO_DEFENSE, Attack, DataSource, Defense, Model
from medpfl.core.threat import HONEST, ThreatModel
from medpfl.data.images import LabelledImages
from medpfl.data.partition import IID
from medpfl.engines.choice import ready
from medpfl.inputs.filters import Filtered, defense_in, without_silent
from medpfl.inputs.network import network_of
from medpfl.inputs.parts import attacks_of, defenses_given, model_of
from medpfl.inputs.spelling import path_of
from medpfl.models.entering import Entering
from medpfl.recording.folder import kept_at
from medpfl.runs.environment import seed_of
from medpfl.runs.outlook import Outlook
from medpfl.runs.pulse import pulsing
from medpfl.runs.study_key import study_index

__all__ = ["RecordCase", "RecordOptions", "audit_record", "record_options"]


@dataclass(frozen=True)
class RecordOptions:
    """Options of `audit_record` and `medpfl.audit_federation`: how to attack a record, and how to judge the attacks.

    Attributes:
        model, attacks, defenses, threat, reading, criteria, run: as in `audit_record`.
    """

    model: str | Path | Model | nn.Module = Experiment.model
    _: KW_ONLY
    attacks: Sequence[str | Attack] = ()
    defenses: Sequence[str | Defense] = ()
    threat: ThreatModel = HONEST
    reading: Reading = Experiment.victims
    criteria: Criteria = Experiment.criteria
    run: Run = Experiment.run

    def options(self) -> dict[str, Any]:
        """Return these options by name, without a subclass's own fields."""
        return {one.name: getattr(self, one.name) for one in fields(RecordOptions)}


def record_options(experiment: Experiment) -> dict[str, Any]:
    """Return the options by name, as an experiment gives them in strings and numbers."""
    return RecordOptions(
        experiment.model,
        attacks=experiment.attack,
        defenses=experiment.defense,
        threat=experiment.threat,
        reading=experiment.victims,
        criteria=experiment.criteria,
        run=experiment.run,
    ).options()


@dataclass(frozen=True)
class _Pair:
    """A record and its truth: the first arguments of `RecordCase`, before its options."""

    record: str | Path
    truth: str | Path | DataSource | LabelledImages | Sequence[str | Path]


@dataclass(frozen=True)
class RecordCase(RecordOptions, _Pair):
    """A record with its truth, and how to audit it.

    Attributes:
        record, truth: as in `audit_record`.
    """

    def check(self) -> Json:
        """Return the check of the record, without an attack; nothing is written.

        Raises:
            InputError: the record is wrong, or it cannot be attacked as asked.
        """
        with replace(self, run=replace(self.run, out=None)).scene() as (given, isolation, place, check):
            found = checked(given, isolation)
            if check is not None:
                return check
            scenario = found.scenario
            scorer = Scorer(scenario.data, study_index(None, scenario.data, scenario.source, place))
            recorded = next(d for d in scenario.defenses if isinstance(d, Recorded))
            return record_difference(Player(scenario, scorer, found.wrong_layer is not None), recorded)

    def report(self, check: Json | None = None, secret: str | None = None) -> Report:
        """Run the attacks, and return the report.

        Args:
            check: result of `check`, if it was called before.
            secret: secret of the study indices that several audits in memory share.
        """
        with pulsing(self.run.visible), self.scene(check) as (scenario, isolation, place, told):
            return executed(scenario, isolation, place, told, secret)

    def outlook(self) -> Outlook:
        """Return the plan of the audit; nothing is written."""
        with self.scene() as (scenario, isolation, place, told):
            return foreseen_of(scenario, isolation, place, told)

    @contextmanager
    def scene(self, check: Json | None = None) -> Iterator[tuple[Scenario, Isolation, str, Json | None]]:
        """Yield the scenario, its isolation, the images' place, and the check of an undefended record.

        The run's engine and threads are ready meanwhile.
        """
        path, given, recipe = path_of(self.record), defenses_given(self.defenses), model_of(self.model)
        held = read(path)
        several, kept = held.clients, kept_at(self.truth, held.clients)
        plan = held.regular_plan()
        stated = _stated_defense(held, path, [one.part for one in given])
        reading = self.reading
        truth: Any = self.truth
        if held.image_shape and isinstance(truth, str | Path):
            shape: Any = held.image_shape
            reading = Reading(size=shape[-1], fit=reading.fit, channels=shape[0])
        entering = recipe if held.pixels is None or held.pixels.plain else Entering(recipe, held.pixels)
        with ready(self.run, *WORK), isolating(self.attacks, self.run.isolate, entering, given) as isolation:
            found = images_of(truth, reading, self.run) if kept is None else found_in(*kept, held, plan)
            images = relabel(found.images, held, plan)
            network = network_of(recipe, images.shape, len(images.classes), seed_of(self.run.seed, "weights", 0))
            named = named_as(held, network, plan)
            if note := unsent(named, plan):
                say(f"note: {note}")
            scenario = Scenario(
                model=entering,
                weights=named.weights,
                data=images,
                source=found.source,
                attacks=attacks_of(isolation.attacks, isolation.worker),
                defenses=[NO_DEFENSE, Recorded(named.update, stated.defense, stated.unknown, several)],
                threat=self.threat.knowing(images.gray),
                plan=plan,
                partition=InOrder(several) if several > 1 else IID(clients=1),
                selection=Victims(images=plan.images * several),
                criteria=self.criteria,
                run=self.run,
                reader=found.reader,
                recipe=isolation.recipe,
            )
            bare = stated.defense == NO_DEFENSE
            if check is None and (bare or several > 1):  # else, the update is compared with the defense's own draws
                own, sums = kept and kept[0], None if bare else stated.defense
                plain = without_silent(named, path)
                check = told_of(check_images(plain, path, network, images, scenario.truths, own, sums, held))
            yield scenario, isolation, found.place, check


@taking(RecordCase)
def audit_record(case: RecordCase) -> Report:
    """Measure how well a server can reconstruct images from one recorded update (`medpfl.Record`).

    Args:
        record: a file from `medpfl.Record.save`.
        truth: the images behind the update, as ``data`` in `medpfl.audit`, or the truth file that was recorded beside
            it. For the mean of several clients' updates: a list of their truth files, or a pattern for them.
        model: as in `medpfl.audit`; the record holds its weights.
        attacks, threat, criteria, run: as in `medpfl.audit`.
        defenses: the client's defense, if the record does not state it.
        reading: how to read the images; if the record states their size and channels, those are used.

    Raises:
        InputError: something cannot work; raised before any attack runs.
    """
    return case.report()


def _stated_defense(record: Record, place: Path, given: list[Defense]) -> Filtered:
    """Return the defense behind a record at the client, as the auditor states it, or else as the record does."""
    told, unknown = [at_client(d) for d in given if d != NO_DEFENSE], ()
    if not told:
        found, unknown = defense_in(record, place)
        told = [at_client(found)]
    if unknown:
        say(f"note: no attack knows what {' and '.join(unknown)} did to the update: state an equal --defense")
    elif record.filters and told != [NO_DEFENSE]:
        say(f"note: the record's filters are audited as {told[0]!r}")
    several = record.clients > 1
    if several and any(one != NO_DEFENSE and not _only_sums(one) for one in told):
        raise InputError("a record of a mean takes only a secure aggregation as --defense, without other parts")
    if not several and any(map(aggregates, told)):
        raise InputError("a record holds one client's update, but under secure aggregation the server gets only a sum")
    if len(told) > 1:
        raise InputError("a record was made under one defense: give only the client's, with its parts joined by |")
    return Filtered(told[0], unknown)


def _only_sums(defense: Defense) -> bool:
    """Return True if a defense acts in the aggregation and nowhere else."""
    moments = ("model", "batch", "gradient", "update")
    return aggregates(defense) and not any(defense.acts(moment) for moment in moments)
