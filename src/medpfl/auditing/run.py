"""Entry points of an audit: run all unfinished jobs, and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from medpfl.auditing.aggregation import aggregates
from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.feasibility import Feasibility
from medpfl.auditing.isolating import Isolation, isolating
from medpfl.auditing.jobs import jobs_of
from medpfl.auditing.player import Player
from medpfl.auditing.recorded import (
    Recorded,
    check_images,
    defense_in,
    found_in,
    kept_at,
    named_as,
    read,
    relabel,
    told_of,
)
from medpfl.auditing.report import Report, finish
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.settings import settings_of
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
from medpfl.inputs.filters import Filtered
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
from medpfl.inputs.spelling import path_of
from medpfl.models.entering import Entering
from medpfl.runs.cloak import Cloak
from medpfl.runs.directory import check_outside, made
from medpfl.runs.environment import seed_of
from medpfl.runs.identity import unchanged
from medpfl.runs.progress_bar import name_skipped, watching
from medpfl.runs.study_key import study_index

__all__ = ["audit", "audit_record", "perform"]

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
    truth: str | Path | DataSource | LabelledImages,
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
        truth: the images behind the update, as ``data`` in `audit`, or the truth file that was recorded beside it.
        model: as in `audit`; the record holds its weights.
        attacks, threat, criteria, run: as in `audit`.
        defenses: the client's defense, if the record does not state it.
        reading: how to read the images; if the record states their size and channels, those are used.

    Raises:
        InputError: something cannot work; raised before any attack runs.
    """
    path, given, recipe = path_of(record), defenses_given(defenses), model_of(model)
    held, kept = read(path), kept_at(truth)
    plan = held.regular_plan()
    stated = _stated_defense(held, path, [one.part for one in given])
    if held.image_shape and isinstance(truth, str | Path):
        reading = Reading(size=held.image_shape[-1], fit=reading.fit, channels=held.image_shape[0])  # type: ignore[arg-type]
    entering = recipe if held.pixels is None or held.pixels.plain else Entering(recipe, held.pixels)
    with isolating(attacks, run.isolate, entering, given) as isolation:
        found = _read(truth, reading, run) if kept is None else found_in(kept, path_of(str(truth)), held, plan)
        images = relabel(found.images, held, plan)
        network = network_of(recipe, images.shape, len(images.classes), seed_of(run.seed, "weights", 0))
        named = named_as(held, network, plan)
        scenario = Scenario(
            model=entering,
            weights=named.weights,
            data=images,
            source=found.source,
            attacks=attacks_of(isolation.attacks, isolation.worker),
            defenses=[NO_DEFENSE, Recorded(named.update, stated.defense, stated.unknown)],
            threat=threat,
            plan=plan,
            partition=IID(clients=1),
            selection=Victims(images=plan.images),
            criteria=criteria,
            run=run,
            reader=found.reader,
            recipe=isolation.recipe,
        )
        check = None
        if stated.defense == NO_DEFENSE:  # under a defense, the update is compared with the defense's own draws
            check = told_of(check_images(named, path, network, images, scenario.truths, kept))
        return _played(scenario, isolation, found.place, check)


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
    if any(map(aggregates, told)):
        raise InputError("a record holds one client's update, but under secure aggregation the server gets only a sum")
    if len(told) > 1:
        raise InputError("a record was made under one defense: give only the client's, with its parts joined by |")
    return Filtered(told[0], unknown)


def _played(scenario: Scenario, isolation: Isolation, place: str, check: Json | None = None) -> Report:
    """Check a scenario, run its unfinished jobs, and report; `check` is that of an undefended record."""
    run = scenario.run
    checked = Feasibility(scenario)
    if scenario.attacks == attacks_of(STANDARD):
        scenario = replace(scenario, attacks=[*scenario.attacks, *isolation.as_these(checked.untried)])
        checked = Feasibility(scenario)
    checked.check()
    out = None if run.out is None else Path(run.out)
    if out is not None:
        made(out)
    index = study_index(out, scenario.data, scenario.source, place, run.force)
    scorer = Scorer(scenario.data, index, bool(scenario.label_shape))
    player = Player(scenario, scorer, checked.wrong_layer is not None)
    identity, jobs = scenario.identity(index), jobs_of(scenario)
    sizes = {job.key: job.rows for job in jobs}
    with claimed(out, identity, sizes, run.force, identity.cloak if out is not None else Cloak(None)) as store:
        settings = isolation.added_to(settings_of(checked, player, check), scenario.attacks)
        store.note(settings=settings.to_dict(), jobs=[[*key, count] for key, count in sizes.items()])
        todo = [job for job in jobs if job.key not in store]
        done = sum(sizes.values()) - sum(job.rows for job in todo)
        with unchanged(scenario.code, store.directory), watching(sum(sizes.values()), done, run.progress) as during:
            for job in todo:
                with during(job.key, job.rows):
                    store.add(job.key, *player(job))
        return finish(store, Settings.of(store.cloak(settings.to_dict())), scenario.data.classes)
