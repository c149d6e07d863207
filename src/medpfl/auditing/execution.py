"""The course of every audit: read the images, check that it can work, run all unfinished jobs, and report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from medpfl.auditing.feasibility import Feasibility
from medpfl.auditing.forecast.budget import standard_attack
from medpfl.auditing.forecast.costs import announced, estimated
from medpfl.auditing.isolating import Isolation
from medpfl.auditing.jobs import Job
from medpfl.auditing.repeated import finished_report, reported
from medpfl.auditing.report import Report, finish
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.settings import settings_of
from medpfl.auditing.store import Store, claimed
from medpfl.auditing.work import Task, Work
from medpfl.core.experiments.groups import Reading, Run
from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.messages import log, say
from medpfl.core.progress import phase
from medpfl.core.roles import Attack, DataSource
from medpfl.data.images import LabelledImages
from medpfl.engines.choice import engine_of
from medpfl.engines.engine import TRIES, Again, Lost, Watch
from medpfl.inputs.parts import Found, data_of
from medpfl.inputs.standard import standard
from medpfl.runs.cloak import Cloak
from medpfl.runs.folders import check_outside, made
from medpfl.runs.header_index import keep_index, recall_index
from medpfl.runs.identity import unchanged
from medpfl.runs.jobs import JobKey
from medpfl.runs.progress_bar import Jobs, name_skipped, watching
from medpfl.runs.study_key import study_index

__all__ = ["WORK", "Prepared", "checked", "executed", "feasible", "images_of", "shared_attacks"]


WORK = (Work.__module__, "torch._dynamo")
"""Modules that workers import; torch imports the second with its first derivative, which takes seconds."""


class Prepared(Protocol):
    """An audit that can be set up: of a model, or of a record."""

    @property
    def attacks(self) -> Sequence[str | Attack]:
        """The attacks that it names."""
        ...

    @property
    def run(self) -> Run:
        """Its run directory, device and so on."""
        ...

    def scene(self) -> AbstractContextManager[tuple[Any, ...]]:
        """Yield its scenario, its isolation, and more."""
        ...


def images_of(data: str | Path | DataSource | LabelledImages, reading: Reading, run: Run) -> Found:
    """Read the images, and report skipped files."""
    out = None if run.out is None else Path(run.out)
    with phase("reading the images"):
        recall_index(out)
        found = data_of(data, reading)
    name_skipped(found.images.skipped, found.images.notes)
    check_outside(out, found.place)
    return found


def checked(scenario: Scenario, isolation: Isolation) -> Feasibility:
    """Return a scenario's checks, with any standard attack if it names none; raise `InputError` if one fails."""
    with phase("checking the model, attacks and defenses"):
        found = Feasibility(
            scenario if scenario.attacks else replace(scenario, attacks=isolation.as_these([standard()]))
        )
        found.check()
        return found


def feasible(
    scenario: Scenario, isolation: Isolation, also: Iterable[Path] | None = None
) -> tuple[Scenario, Feasibility]:
    """Return the scenario, with the standard attack if it names none, and its checks; `InputError` if one fails.

    Args:
        scenario, isolation: the audit.
        also: run directories of further audits with the same attack, which may hold its budget; ``None`` if there are
            no further audits.
    """
    found = checked(scenario, isolation)
    if not scenario.attacks:
        attack = standard_attack(found.scenario, also)
        found.scenario = replace(scenario, attacks=isolation.as_these([attack]))
    return found.scenario, found


def shared_attacks(audits: Sequence[Prepared]) -> Sequence[str | Attack]:
    """Return the attacks of several audits: those that they name, or the standard attack with one budget for all.

    A run directory of any of them may hold that budget; otherwise, the first audit decides it.
    """
    first = audits[0]
    if first.attacks:
        return first.attacks
    with first.scene() as (scenario, isolation, *_):
        outs = [Path(one.run.out) for one in audits if one.run.out is not None]
        also = outs if len(audits) > 1 else None
        return [repr(attack) for attack in feasible(scenario, isolation, also)[0].attacks]


def executed(
    scenario: Scenario, isolation: Isolation, place: str, check: Json | None = None, secret: str | None = None
) -> Report:
    """Check a scenario, run its unfinished jobs, and report; `check` is that of a record.

    If all of that was done before, the report is read from the run directory.
    """
    if (found := finished_report(scenario, isolation, place, check)) is not None:
        if scenario.whole and found.store is not None:
            found.store.check_whole()
        return found
    scenario, tested = feasible(scenario, isolation)
    run = scenario.run
    out = None if run.out is None else Path(run.out)
    if out is not None:
        made(out)
    index = study_index(out, scenario.data, scenario.source, place, run.force, secret)
    keep_index(out, place)
    scorer = Scorer(scenario.data, index, bool(scenario.label_shape), scenario.criteria.best_match)
    work = Work(scenario, scorer, tested.wrong_layer is not None)
    identity, jobs = scenario.identity(index), work.jobs
    sizes = {job.key: job.rows for job in jobs}
    cloak = identity.cloak if out is not None else Cloak(None)
    with claimed(out, identity, sizes, run.force, cloak, run.numbers_only) as store:
        if scenario.whole:
            store.check_whole()
        with phase("testing what the defenses disclose"):
            settings = isolation.added_to(settings_of(tested, work.player, check), scenario.attacks)
        store.note(settings=settings.to_dict(), jobs=[[*key, count] for key, count in sizes.items()])
        gaps = _played(work, store, run)
        if notes := (*_of_split(jobs, store), *_of_gaps(gaps)):
            settings = replace(settings, gaps=tuple(gaps), notes=(*settings.notes, *notes))
            store.note(settings=settings.to_dict())
        with phase("judging, and writing the pages"):
            report = finish(store, Settings.of(store.cloak(settings.to_dict())), scenario.data.classes)
            if store.directory is not None and not gaps:  # the last step
                store.directory.note(reported=reported(scenario, isolation, check, report.pages))
            return report


def _played(work: Work, store: Store, run: Run) -> list[Json]:
    """Run the jobs that the store lacks, and return those that could not be done."""
    jobs, scenario, gaps, split = work.jobs, work.scenario, list[Json](), set[str]()
    tasks = [
        Task(number, store.together(job.key, len(job.groups)))
        for number, job in enumerate(jobs)
        if job.key not in store
    ]
    todo = [jobs[task.number] for task in tasks]
    rows = sum(job.rows for job in jobs)
    done = rows - sum(job.rows for job in todo)
    costs = estimated(work.player, todo) if run.visible else None
    if costs is not None:
        announced(costs, jobs, todo)
    with (
        unchanged(scenario.code, store.directory),
        watching(rows, done, run.visible, costs) as shown,
        closing(engine_of(run).results(work, tasks, _Told(shown, todo))) as results,
    ):
        for place, found in results:
            job, what = todo[place], todo[place].key.named
            if isinstance(found, Lost):
                gaps.append(_gap(job, found))
            elif isinstance(found, Again):
                store.split(job.key, found.task.most)
                if what not in split:
                    say(f"note: {what}: a stack of victims ran out of memory, and is attacked in halves")
                split.add(what)
            else:
                store.add(job.key, found.rows, tuple(map(torch.tensor, found.pictures)))
                log(f"{what}: {job.rows} images done")
    return gaps


class _Told(Watch):
    """Passes on the state of tasks as that of jobs."""

    def __init__(self, shown: Jobs, todo: Sequence[Job]) -> None:
        self.shown, self.todo = shown, todo

    def begin(self, place: int) -> None:
        self.shown.begin(self.todo[place].key, self.todo[place].rows)

    def report(self, place: int, share: float, said: Callable[[], str] = str) -> None:
        self.shown.report(self.todo[place].key, share, said)

    def end(self, place: int) -> None:
        self.shown.end(self.todo[place].key)


def _gap(job: Job, lost: Lost) -> Json:
    """Report a job that could not be done, and return what pages say of it."""
    say(
        f"note: {job.rows} images of {job.key.named} were not attacked: {lost.why}. This job was begun {TRIES} times; "
        "the same command tries it again"
    )
    return {**job.key._asdict(), "images": job.rows, "why": lost.why}


def _of_split(jobs: Sequence[Job], store: Store) -> list[str]:
    """Return the pages' notes on stacks that did not fit into memory, one for each attack and defense."""
    found: dict[str, list[int]] = {}
    for job in jobs:
        if (most := store.together(job.key, len(job.groups))) < len(job.groups):
            found.setdefault(job.key.named, []).append(most)
    return [
        f"{what}: {len(most)} stack{'s' * (len(most) != 1)} of victims ran out of memory and "
        f"{'was' if len(most) == 1 else 'were'} split, so that at most {min(most)} victim{'s' * (min(most) != 1)} were "
        "attacked together. A whole stack would have other random starting points. A lower --memory avoids this."
        for what, most in found.items()
    ]


def _of_gaps(gaps: Sequence[Json]) -> list[str]:
    """Return the pages' notes on jobs that could not be done, one for each attack and defense."""
    images: dict[tuple[str, str], int] = {}
    for gap in gaps:
        place = (JobKey(**{name: gap[name] for name in JobKey._fields}).named, gap["why"])
        images[place] = images.get(place, 0) + gap["images"]
    return [
        f"{count} images of {what} were not attacked: {why}. Repeat the same command to try them again."
        for (what, why), count in images.items()
    ]
