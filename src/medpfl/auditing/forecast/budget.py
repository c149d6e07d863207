"""The standard attack of an audit that names none, with as many evaluations as the stated minutes allow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from medpfl.attacks.matching.problem import stacks
from medpfl.auditing.jobs import Job, jobs_of
from medpfl.auditing.player import Player
from medpfl.auditing.scenario import Scenario
from medpfl.core.messages import say
from medpfl.core.progress import phase
from medpfl.core.roles import Attack
from medpfl.core.types import Weights
from medpfl.inputs.standard import ENOUGH, LEAST, budget_of, kept, may_explain, probe, standard
from medpfl.runs.directory import known_in

__all__ = ["seconds_each", "standard_attack"]

_VICTIMS, _STEPS = 8, 3
"""Maximum victims, and steps, of a probe."""


def standard_attack(scenario: Scenario, also: Iterable[Path] | None = None) -> Attack:
    """Return the attack with the budget that a run directory holds, or else with the one that ``run.minutes`` allow.

    Args:
        scenario: the scenario, with any standard attack as its only one.
        also: run directories of further audits with the same attack, which may hold its budget too; ``None`` if there
            are no further audits. Otherwise the searches always run, because another one may need them.
    """
    out = scenario.run.out
    places = () if scenario.run.force else (*([] if out is None else [Path(out)]), *(also or ()))
    specs = (known_in(place).get("identity", {}).get("attacks") for place in places)
    found = next(filter(None, map(kept, specs)), None)
    if found is not None:
        say(f"note: the searches keep the run's own budget, {budget_of(found)} evaluations an image")
        return found
    minutes = scenario.run.minutes
    if minutes == 0:
        return standard(0)
    with phase("timing the searches"):
        each = _seconds(scenario)
    allowed = _rounded(60 * minutes / each)
    if allowed >= LEAST:
        return standard(min(allowed, ENOUGH))
    needed = f"--minutes {-(-LEAST * each // 60):.0f} allows the shortest ones"
    if also is not None:
        say(f"note: {minutes:g} minutes are too few for searches: the shortest ones run")
        return standard(LEAST)
    if all(may_explain(ready, plans, scenario.data.shape) for ready, plans in scenario.scenes()):
        say(f"note: {minutes:g} minutes are too few for searches, so only analytic attacks run; {needed}")
        return standard(0)
    few = f"note: {minutes:g} minutes are too few for searches"
    say(f"{few}, and no analytic attack may solve the updates: the shortest ones run")
    return standard(LEAST)


def _seconds(scenario: Scenario) -> float:
    """Return the seconds that one evaluation takes for all victims of all jobs."""
    player, small = Player(scenario), stacks(Weights.of(scenario.network(0)))
    jobs, known = jobs_of(scenario), {}
    for job in jobs:
        if (each := job.rows // len(job.groups)) not in known:
            few = replace(job, attack=probe(1), groups=job.groups[: _VICTIMS if small else 1])
            known[each] = seconds_each(player, few) / len(few.groups)
    return sum(known[job.rows // len(job.groups)] * len(job.groups) for job in jobs)


def seconds_each(player: Player, job: Job) -> float:
    """Return the seconds of one evaluation for a job's victims, from searches with few and with more steps."""
    seconds = [player.timed(job, probe(steps)) for steps in (1, _STEPS, 3 * _STEPS)]  # the first warms up
    return max((seconds[2] - seconds[1]) / (2 * _STEPS), 1e-6)


def _rounded(count: float) -> int:
    """Return a count, rounded down to two digits.

    >>> _rounded(1987.3), _rounded(64.2)
    (1900, 64)
    """
    unit = 10 ** max(len(str(int(count))) - 2, 0)
    return int(count) // unit * unit
