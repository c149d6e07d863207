"""The time that an audit's jobs will take: from a few steps of each search, or from the first job of other attacks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace

from medpfl import attacks as attack_package
from medpfl.attacks.matching.problem import stacks
from medpfl.auditing.defense_parts import at_client
from medpfl.auditing.forecast.budget import seconds_each
from medpfl.auditing.jobs import Job
from medpfl.auditing.player import Player
from medpfl.auditing.records.recorded import behind
from medpfl.core.errors import InputError
from medpfl.core.messages import say
from medpfl.core.progress import phase
from medpfl.core.roles import NO_DEFENSE, Attack
from medpfl.core.spec import registry
from medpfl.core.types import Weights
from medpfl.engines.choice import workers_of
from medpfl.inputs.standard import budget_of
from medpfl.inspection.check import shortened_names
from medpfl.runs.environment import explained
from medpfl.runs.estimate import Estimate, Piece
from medpfl.runs.pulse import clock

__all__ = ["announced", "estimated"]

_VICTIMS, _STEPS = (1, 8), (2, 8)
"""Numbers of victims and of steps in a probe: for large models, and for small ones that are attacked in stacks."""
_SLOW = 1.0
"""Seconds after which a probe is repeated only once."""
_USUAL, _EARLY = 0.5, 0.5
"""Share of its steps that a search usually takes before it ends, and share of these without a defense."""


def estimated(player: Player, todo: Sequence[Job], whole: bool = False) -> Estimate:
    """Return an estimate for unfinished jobs, from a probe of each of MedPFL's own searches.

    An attack that computes its guess has no few steps to time: its first job tells its time. A user's own attack is not
    run for a probe: its time is that of the others, until it has run once.

    Args:
        player: the audit's player.
        todo: the unfinished jobs.
        whole: True runs attacks that compute their guess on one victim, because no job will run.
    """
    jobs = {job.attack: job for job in reversed(todo)}
    small = stacks(Weights.of(player.scenario.network(0)))
    with phase("timing a few steps of each attack"):
        found = {
            repr(attack): _seconds(player, job, small) if whole or not _computes(attack) else None
            for attack, job in reversed(jobs.items())
        }
    known = [seconds for seconds in found.values() if seconds is not None]
    mean = sum(known) / len(known) if known else 1.0

    def piece(job: Job) -> Piece:
        spec, exact = repr(job.attack), not job.control and at_client(behind(job.defense)) == NO_DEFENSE
        each, early = found[spec], _EARLY if exact and not _computes(job.attack) else 1.0
        seconds = (mean if each is None else each) * len(job.groups) * early
        kinds = (f"{spec} x {job.control or job.key.defense}, {job.knows}", f"{spec}, {exact}", spec, "")
        return Piece(kinds, seconds, alone=each is None and _computes(job.attack))

    return Estimate({job.key: piece(job) for job in todo}, trusted=bool(known), workers=workers_of(player.scenario.run))


def announced(estimate: Estimate, jobs: Sequence[Job], todo: Sequence[Job]) -> None:
    """Print what an audit will do, and how long that will take."""
    if not todo:
        say(f"all {len(jobs)} jobs are done already")
        return
    images, rows = sum(job.rows for job in todo if not job.control), sum(job.rows for job in todo)
    seconds, done = estimate.left(), len(jobs) - len(todo)
    kept = f"; {done} of {len(jobs)} jobs are done already" if done else ""
    untold = [job.attack for job in todo if estimate.expected(estimate.todo[job.key]) is None]
    names = dict.fromkeys(type(attack).__name__ for attack in untold if _computes(attack))
    time = "" if seconds is None else f", in about {clock(seconds)}"
    time += f"; the time of {' and '.join(names)} is known after the first job" if names else ""
    counts = {"reconstruction": images, "control": rows - images, "attack": len({job.attack for job in todo})}
    told = [f"{count} {word}{'s' * (count != 1)}" for word, count in {**counts, "job": len(todo)}.items()]
    say("{} and {}, by {} in {}".format(*told) + time + kept)


def _computes(attack: Attack) -> bool:
    """Return True if one of MedPFL's attacks computes its guess; a search may end it, but is not most of its time."""
    return attack.specialized and type(attack) in registry(attack_package).values()


def _seconds(player: Player, job: Job, small: bool) -> float | None:
    """Return the seconds that a job's attack usually takes for each victim; ``None`` if it cannot be probed."""
    if type(job.attack) not in registry(attack_package).values():
        return None
    few, own = replace(job, groups=job.groups[: _VICTIMS[small]]), {field.name for field in fields(job.attack)}  # type: ignore[arg-type]  (attacks are dataclasses)
    with suppress(InputError), explained("it cannot be timed"):
        if budget := budget_of(job.attack):
            return seconds_each(player, few) / len(few.groups) * budget
        if _computes(job.attack):
            return player.timed(replace(job, groups=job.groups[:1]), job.attack)
        if "steps" not in own:
            return player.timed(few, job.attack) / len(few.groups)
        return _of_steps(player, few, job.attack, _STEPS[small]) / len(few.groups)
    return None


def _of_steps(player: Player, job: Job, attack: Attack, steps: int) -> float:
    """Return the seconds that an attack usually takes, with all restarts, from runs with few and with more steps."""
    first = player.timed(job, shortened_names(attack, steps))
    more = steps * (2 if first > _SLOW else 4)
    if first <= _SLOW:
        first = min(first, player.timed(job, shortened_names(attack, steps)))  # the first one warms up
    each = max(0.0, player.timed(job, shortened_names(attack, more)) - first) / (more - steps)
    whole = max(0.0, first - each * steps) + each * _USUAL * getattr(attack, "steps", 0)
    return whole * getattr(attack, "restarts", 1)
