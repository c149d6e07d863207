"""Entry points of an audit: run all unfinished jobs, and report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from medpfl.auditing.aggregation import aggregates
from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.feasibility import Feasibility
from medpfl.auditing.isolating import Isolation, isolating
from medpfl.auditing.jobs import jobs_of
from medpfl.auditing.player import Player
from medpfl.auditing.recorded import (
    InOrder,
    Recorded,
    check_images,
    found_in,
    named_as,
    read,
    relabel,
    told_of,
)
from medpfl.auditing.report import Report, finish
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.settings import compared, settings_of
from medpfl.auditing.store import claimed
from medpfl.core.errors import InputError
from medpfl.core.experiments.experiment import STANDARD, Experiment
from medpfl.core.experiments.groups import Criteria, Reading, Run, Victims
from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.messages import say
from medpfl.core.plan import Plan
from medpfl.core.records.record import Record
from medpfl.core.roles import NO_DEFENSE, Attack, DataSource, Defense, Model
from medpfl.core.threat import ThreatModel
from medpfl.data.images import LabelledImages
from medpfl.data.partition import IID
from medpfl.inputs.filters import Filtered, defense_in, without_silent
from medpfl.inputs.network import network_of
from medpfl.inputs.parts import (
    Found,
    attacks_of,
    data_of,
    defenses_given,
    is_record,
    model_of,
    partition_of,
)
from medpfl.inputs.spelling import is_pattern, path_of
from medpfl.models.entering import Entering
from medpfl.recording.folder import kept_at
from medpfl.runs.cloak import Cloak
from medpfl.runs.directory import check_outside, made
from medpfl.runs.environment import seed_of
from medpfl.runs.identity import unchanged
from medpfl.runs.progress_bar import name_skipped, watching
from medpfl.runs.study_key import study_index

__all__ = ["RecordCase", "audit", "audit_record", "perform"]

HONEST = ThreatModel()
"""An honest-but-curious server without grants."""


def audit(
    model: str | Path | Model | nn.Module = Experiment.model,
    data: str | Path | DataSource | LabelledImages = Experiment.data,
    *,
    attacks: Sequence[str | Attack] = STANDARD,
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
        attacks, defenses: specs or objects; the undefended control is added to the defenses.
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
    if isinstance(data, str | Path) and is_pattern(str(data)):
        raise InputError(f"'{data}' is a pattern for several records: use medpfl.audit_federation(records, model)")
    if is_record(data):
        raise InputError(f"'{data}' is a record of an update: use medpfl.audit_record(record, truth, model)")
    given, recipe = defenses_given(defenses), model_of(model)
    partition = partition_of(victims.partition, victims.clients)
    with isolating(attacks, run.isolate, recipe, given) as isolation:  # before any image is read
        found = _read(data, victims, run)
        scenario = Scenario(
            model=recipe,
            weights=None if weights is None else Path(weights),
            data=found.images,
            source=found.source,
            attacks=attacks_of(isolation.attacks, isolation.worker),
            defenses=[one.part for one in given],
            threat=threat,
            plan=plan,
            partition=partition,
            selection=victims,
            criteria=criteria,
            run=run,
            reader=found.reader,
            recipe=isolation.recipe,
        )
        return _played(scenario, isolation, found.place)


def audit_record(
    record: str | Path,
    truth: str | Path | DataSource | LabelledImages | Sequence[str | Path],
    model: str | Path | Model | nn.Module = Experiment.model,
    *,
    attacks: Sequence[str | Attack] = STANDARD,
    defenses: Sequence[str | Defense] = (),
    threat: ThreatModel = HONEST,
    reading: Reading = Experiment.victims,
    criteria: Criteria = Experiment.criteria,
    run: Run = Experiment.run,
) -> Report:
    """Measure how well a server can reconstruct images from one recorded update (`medpfl.Record`).

    Args:
        record: a file from `medpfl.Record.save`.
        truth: the images behind the update, as ``data`` in `audit`, or the truth file that was recorded beside it. For
            the mean of several clients' updates: a list of their truth files, or a pattern for them.
        model: as in `audit`; the record holds its weights.
        attacks, threat, criteria, run: as in `audit`.
        defenses: the client's defense, if the record does not state it.
        reading: how to read the images; if the record states their size and channels, those are used.

    Raises:
        InputError: something cannot work; raised before any attack runs.
    """
    case = RecordCase(
        record=record,
        truth=truth,
        model=model,
        attacks=attacks,
        defenses=defenses,
        threat=threat,
        reading=reading,
        criteria=criteria,
        run=run,
    )
    return case.report()


@dataclass(frozen=True, kw_only=True)
class RecordCase:
    """A record with its truth, and how to audit it.

    Attributes:
        record, truth, model, attacks, defenses, threat, reading, criteria, run: as in `audit_record`.
        secret: secret of the study indices that several audits in memory share.
    """

    record: str | Path
    truth: str | Path | DataSource | LabelledImages | Sequence[str | Path]
    model: str | Path | Model | nn.Module = Experiment.model
    attacks: Sequence[str | Attack] = STANDARD
    defenses: Sequence[str | Defense] = ()
    threat: ThreatModel = HONEST
    reading: Reading = Experiment.victims
    criteria: Criteria = Experiment.criteria
    run: Run = Experiment.run
    secret: str | None = None

    def check(self) -> Json:
        """Return the check of the record, without an attack; nothing is written.

        Raises:
            InputError: the record is wrong, or it cannot be attacked as asked.
        """
        with replace(self, run=replace(self.run, out=None)).scene() as (given, isolation, place, check):
            scenario, checked = _feasible(given, isolation)
            if check is not None:
                return check
            scorer = Scorer(scenario.data, study_index(None, scenario.data, scenario.source, place))
            recorded = next(d for d in scenario.defenses if isinstance(d, Recorded))
            return compared(Player(scenario, scorer, checked.wrong_layer is not None), recorded)

    def report(self, check: Json | None = None) -> Report:
        """Run the attacks, and return the report.

        Args:
            check: result of `check`, if it was called before.
        """
        with self.scene(check) as (scenario, isolation, place, told):
            return _played(scenario, isolation, place, told, self.secret)

    @contextmanager
    def scene(self, check: Json | None = None) -> Iterator[tuple[Scenario, Isolation, str, Json | None]]:
        """Yield the scenario, its isolation, the images' place, and the check of an undefended record."""
        path, given, recipe = path_of(self.record), defenses_given(self.defenses), model_of(self.model)
        held = read(path)
        several, kept = held.clients, kept_at(self.truth, held.clients)
        plan = held.regular_plan()
        stated = _stated_defense(held, path, [one.part for one in given])
        # The only defense of a mean is secure aggregation: it rounds the mean, and discloses nothing to attacks.
        told = NO_DEFENSE if several > 1 else stated.defense
        reading = self.reading
        truth: Any = self.truth
        if held.image_shape and isinstance(truth, str | Path):
            shape: Any = held.image_shape
            reading = Reading(size=shape[-1], fit=reading.fit, channels=shape[0])
        entering = recipe if held.pixels is None or held.pixels.plain else Entering(recipe, held.pixels)
        with isolating(self.attacks, self.run.isolate, entering, given) as isolation:
            found = _read(truth, reading, self.run) if kept is None else found_in(*kept, held, plan)
            images = relabel(found.images, held, plan)
            network = network_of(recipe, images.shape, len(images.classes), seed_of(self.run.seed, "weights", 0))
            named = named_as(held, network, plan)
            scenario = Scenario(
                model=entering,
                weights=named.weights,
                data=images,
                source=found.source,
                attacks=attacks_of(isolation.attacks, isolation.worker),
                defenses=[NO_DEFENSE, Recorded(named.update, told, stated.unknown, several)],
                threat=self.threat,
                plan=plan,
                partition=InOrder(several) if several > 1 else IID(clients=1),
                selection=Victims(images=plan.images * several),
                criteria=self.criteria,
                run=self.run,
                reader=found.reader,
                recipe=isolation.recipe,
            )
            if check is None and told == NO_DEFENSE:  # else, the update is compared with the defense's own draws
                own = kept and kept[0]
                sums = None if stated.defense == NO_DEFENSE else stated.defense
                plain = stated == Filtered(NO_DEFENSE)
                bare = replace(named, filters=(), defense=None) if plain else without_silent(named, path)
                check = told_of(check_images(bare, path, network, images, scenario.truths, own, sums, held))
            yield scenario, isolation, found.place, check


def perform(experiment: Experiment) -> Report:
    """Audit one model as an experiment describes it in strings and numbers."""
    asked = experiment
    if asked.rounds is not None:
        raise InputError("this audits one model, but rounds were given: use medpfl.leakage for several rounds")
    parts = {"attacks": asked.attack, "defenses": asked.defense, "threat": asked.threat}
    if not is_record(asked.data):
        if asked.truth is not None:
            raise InputError("truth goes with a record of an update; without one, leave it out")
        return audit(
            asked.model,
            asked.data,
            **parts,
            plan=asked.plan,
            weights=asked.weights,
            victims=asked.victims,
            criteria=asked.criteria,
            run=asked.run,
        )
    if asked.truth is None:
        raise InputError("a record holds no images: set --truth to the folder with the images behind it")
    if asked.weights is not None:
        raise InputError("a record holds the client's initial weights: leave out --weights")
    return audit_record(
        asked.data, asked.truth, asked.model, **parts, reading=asked.victims, criteria=asked.criteria, run=asked.run
    )


def _read(data: str | Path | DataSource | LabelledImages, reading: Reading, run: Run) -> Found:
    """Read the images, and report skipped files."""
    found = data_of(data, reading)
    name_skipped(found.images.skipped, found.images.notes)
    check_outside(None if run.out is None else Path(run.out), found.place)
    return found


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


def _feasible(scenario: Scenario, isolation: Isolation) -> tuple[Scenario, Feasibility]:
    """Return the scenario with the attacks that suit its model, and its checks; raise `InputError` if one fails."""
    checked = Feasibility(scenario)
    if scenario.attacks == attacks_of(STANDARD):
        scenario = replace(scenario, attacks=[*scenario.attacks, *isolation.as_these(checked.untried)])
        checked = Feasibility(scenario)
    checked.check()
    return scenario, checked


def _played(
    scenario: Scenario, isolation: Isolation, place: str, check: Json | None = None, secret: str | None = None
) -> Report:
    """Check a scenario, run its unfinished jobs, and report; `check` is that of a record."""
    scenario, checked = _feasible(scenario, isolation)
    run = scenario.run
    out = None if run.out is None else Path(run.out)
    if out is not None:
        made(out)
    index = study_index(out, scenario.data, scenario.source, place, run.force, secret)
    scorer = Scorer(scenario.data, index, bool(scenario.label_shape))
    player = Player(scenario, scorer, checked.wrong_layer is not None)
    identity, jobs = scenario.identity(index), jobs_of(scenario)
    sizes = {job.key: job.rows for job in jobs}
    cloak = identity.cloak if out is not None else Cloak(None)
    with claimed(out, identity, sizes, run.force, cloak, run.numbers_only) as store:
        settings = isolation.added_to(settings_of(checked, player, check), scenario.attacks)
        store.note(settings=settings.to_dict(), jobs=[[*key, count] for key, count in sizes.items()])
        todo = [job for job in jobs if job.key not in store]
        done = sum(sizes.values()) - sum(job.rows for job in todo)
        with unchanged(scenario.code, store.directory), watching(sum(sizes.values()), done, run.progress) as during:
            for job in todo:
                with during(job.key, job.rows):
                    store.add(job.key, *player(job))
        return finish(store, Settings.of(store.cloak(settings.to_dict())), scenario.data.classes)
