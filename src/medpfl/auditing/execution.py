"""The course of every audit: read the images, check that it can work, run all unfinished jobs, and report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medpfl.attacks import WorstCase
from medpfl.auditing.feasibility import Feasibility
from medpfl.auditing.forecast.budget import standard_attack
from medpfl.auditing.forecast.costs import announced, estimated
from medpfl.auditing.isolating import Isolation
from medpfl.auditing.jobs import jobs_of
from medpfl.auditing.player import Player
from medpfl.auditing.report import Report, finish
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.settings import settings_of
from medpfl.auditing.store import claimed
from medpfl.core.experiments.groups import Reading, Run
from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.messages import log
from medpfl.core.progress import phase
from medpfl.core.roles import DataSource
from medpfl.data.images import LabelledImages
from medpfl.inputs.parts import Found, data_of
from medpfl.runs.cloak import Cloak
from medpfl.runs.directory import check_outside, made
from medpfl.runs.identity import unchanged
from medpfl.runs.progress_bar import name_skipped, watching
from medpfl.runs.study_key import study_index

__all__ = ["executed", "feasible", "images_of"]


def images_of(data: str | Path | DataSource | LabelledImages, reading: Reading, run: Run) -> Found:
    """Read the images, and report skipped files."""
    with phase("reading the images"):
        found = data_of(data, reading)
    name_skipped(found.images.skipped, found.images.notes)
    check_outside(None if run.out is None else Path(run.out), found.place)
    return found


def feasible(scenario: Scenario, isolation: Isolation) -> tuple[Scenario, Feasibility]:
    """Return the scenario, with the standard attack if it names none, and its checks; `InputError` if one fails."""
    with phase("checking the model, attacks and defenses"):
        return _feasible(scenario, isolation)


def _feasible(scenario: Scenario, isolation: Isolation) -> tuple[Scenario, Feasibility]:
    if scenario.attacks:
        checked = Feasibility(scenario)
        checked.check()
        return scenario, checked
    checked = Feasibility(replace(scenario, attacks=isolation.as_these([WorstCase()])))
    checked.check()
    checked.scenario = replace(scenario, attacks=isolation.as_these([standard_attack(checked.scenario)]))
    return checked.scenario, checked


def executed(
    scenario: Scenario, isolation: Isolation, place: str, check: Json | None = None, secret: str | None = None
) -> Report:
    """Check a scenario, run its unfinished jobs, and report; `check` is that of a record."""
    scenario, checked = feasible(scenario, isolation)
    run = scenario.run
    out = None if run.out is None else Path(run.out)
    if out is not None:
        made(out)
    index = study_index(out, scenario.data, scenario.source, place, run.force, secret)
    scorer = Scorer(scenario.data, index, bool(scenario.label_shape), scenario.criteria.best_match)
    player = Player(scenario, scorer, checked.wrong_layer is not None)
    identity, jobs = scenario.identity(index), jobs_of(scenario)
    sizes = {job.key: job.rows for job in jobs}
    cloak = identity.cloak if out is not None else Cloak(None)
    with claimed(out, identity, sizes, run.force, cloak, run.numbers_only) as store:
        with phase("testing what the defenses disclose"):
            settings = isolation.added_to(settings_of(checked, player, check), scenario.attacks)
        store.note(settings=settings.to_dict(), jobs=[[*key, count] for key, count in sizes.items()])
        todo = [job for job in jobs if job.key not in store]
        done = sum(sizes.values()) - sum(job.rows for job in todo)
        costs = estimated(player, todo) if run.visible else None
        if costs is not None:
            announced(costs, jobs, todo)
        with (
            unchanged(scenario.code, store.directory),
            watching(sum(sizes.values()), done, run.visible, costs) as during,
        ):
            for job in todo:
                with during(job.key, job.rows):
                    store.add(job.key, *player(job))
                log(f"{job.key.attack} x {job.control or job.key.defense}: {job.rows} images done")
        with phase("judging, and writing the pages"):
            return finish(store, Settings.of(store.cloak(settings.to_dict())), scenario.data.classes)
