"""The plan of an audit, made without running its jobs, and without writing anything."""

from __future__ import annotations

import sys
from pathlib import Path

from medpfl.auditing.execution import feasible
from medpfl.auditing.forecast.costs import estimated
from medpfl.auditing.isolating import Isolation
from medpfl.auditing.jobs import Job, jobs_of
from medpfl.auditing.player import Player
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.settings import settings_of
from medpfl.auditing.store import AUDIT, Store, check_claim
from medpfl.core.experiments.settings import Json
from medpfl.core.progress import phase
from medpfl.engines.choice import workers_of
from medpfl.runs.directory import RunDirectory, known_in
from medpfl.runs.folders import check_made
from medpfl.runs.outlook import Outlook, Step
from medpfl.runs.study_key import StudyIndex, study_index

__all__ = ["finished_jobs", "foreseen", "foreseen_of", "peak"]


def peak() -> float | None:
    """Return the peak memory of this process so far in GiB; ``None`` if the operating system does not tell it."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def foreseen(player: Player, jobs: list[Job], done: set[Job], notes: tuple[str, ...]) -> Outlook:
    """Return the plan for an audit's jobs, with the time and memory of those that are not done."""
    todo = [job for job in jobs if job not in done]
    costs = estimated(player, todo, whole=True)
    steps: dict[str, Step] = {}
    for job in jobs:
        knows = ", adaptive" if job.knows else ""
        what = f"{job.key.named}{knows}"
        old = steps.get(what, Step(what, 0, "images", 0, 0, 0.0))
        seconds = 0.0 if job in done else costs.expected(costs.todo[job.key])
        total = None if None in (seconds, old.seconds) else (old.seconds or 0.0) + (seconds or 0.0)
        steps[what] = Step(what, old.count + job.rows, "images", old.jobs + 1, old.done + (job in done), total)
    memory, workers = peak(), workers_of(player.scenario.run)
    each = None if memory is None else memory + _stacks(player.scenario)
    processes = workers + 1 if workers > 1 else 1  # this one only waits for the others
    return Outlook(tuple(steps.values()), None if each is None else each * processes, notes, workers)


def finished_jobs(scenario: Scenario, index: StudyIndex, jobs: list[Job]) -> tuple[set[Job], tuple[str, ...]]:
    """Return the jobs that the run directory already holds, and notes on what else it holds.

    Raises:
        InputError: the audit would refuse the directory.
    """
    if scenario.run.out is None:
        return set(), ()
    out, identity = Path(scenario.run.out), scenario.identity(index)
    directory = RunDirectory(out, AUDIT, identity)
    if not check_claim(directory, scenario.run.force, scenario.run.numbers_only):
        return set(), (f"'{out}' holds another run, which --force would discard",) if known_in(out) else ()
    store = Store(directory, {job.key: job.rows for job in jobs}, identity.cloak)
    whole = {job for job in jobs if job.key in store}
    return {job for job in whole if scenario.run.numbers_only or store.pictured(job.key)}, ()


def _stacks(scenario: Scenario) -> float:
    """Return the GiB that the largest stack of victims takes beyond a single one, by the estimate behind stacks."""
    return max(scenario.gib(defense) for defense in scenario.defenses)


def foreseen_of(scenario: Scenario, isolation: Isolation, place: str, check: Json | None = None) -> Outlook:
    """Check a scenario, and return its plan: nothing is written.

    A search runs for a few steps only; an attack that computes its guess runs on one victim.

    Args:
        scenario, isolation, place: as in an audit.
        check: the check of a record, if it was made.

    Raises:
        InputError: the audit would be refused.
    """
    scenario, checked = feasible(scenario, isolation)
    out = None if scenario.run.out is None else Path(scenario.run.out)
    if out is not None:
        check_made(out)
    index = study_index(out, scenario.data, scenario.source, place, scenario.run.force, keep=False)
    jobs = jobs_of(scenario)
    done, notes = finished_jobs(scenario, index, jobs)
    player = Player(scenario, Scorer(scenario.data, index, bool(scenario.label_shape)), checked.wrong_layer is not None)
    with phase("testing what the defenses disclose"):
        settings_of(checked, player, check)  # refuses what contradicts itself
    with phase("computing an update under each defense"):
        for job in {(job.key.defense, job.knows, job.control): job for job in jobs}.values():
            player.check(job)
    return foreseen(player, jobs, done, notes)
