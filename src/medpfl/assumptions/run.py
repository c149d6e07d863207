"""Audits all cases of the realism meter, continuing where an earlier call stopped."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from medpfl.assumptions.cases import FAVORABLE, Case, Cases, Meter, cases_of
from medpfl.assumptions.result import REALISM, Realism, written
from medpfl.auditing.execution import executed, feasible
from medpfl.auditing.forecast.plan import foreseen_of
from medpfl.auditing.isolating import Isolation
from medpfl.auditing.report import Report, reread
from medpfl.auditing.run import AuditCase, case_of
from medpfl.core.errors import InputError
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.groups import Criteria, Run, Victims
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack, DataSource, Model
from medpfl.core.threat import HONEST
from medpfl.data.images import LabelledImages
from medpfl.inputs.parts import is_record
from medpfl.runs.directory import RUNS, RunDirectory, known_in, reading
from medpfl.runs.estimate import Pace
from medpfl.runs.folders import made
from medpfl.runs.identity import Code, Identity
from medpfl.runs.outlook import Outlook
from medpfl.runs.pulse import pulsing
from medpfl.runs.study_key import key_of

__all__ = ["foresee_realism", "perform_realism", "realism", "remake"]


def realism(
    model: str | Path | Model | nn.Module = Experiment.model,
    data: str | Path | DataSource | LabelledImages = Experiment.data,
    *,
    attacks: Sequence[str | Attack] = (),
    plan: Plan = Experiment.plan,
    weights: str | Path | None = None,
    victims: Victims = Experiment.victims,
    criteria: Criteria = Experiment.criteria,
    run: Run = Experiment.run,
) -> Realism:
    """Measure on which favorable assumptions a leak depends.

    The first audit has all of them: one image per update, eval mode, an untrained model, one local step, known labels,
    and no noise. Each further audit drops one of them, and the last one all. All have the same attacks and images. With
    ``run.out``, each has a run directory in ``OUT/runs``, and an interrupted call can be continued.

    Args:
        model: as in `medpfl.audit`. For a training's directory, its last round is compared with round 0.
        data, attacks, victims, criteria, run: as in `medpfl.audit`. Without attacks, `medpfl.attacks.WorstCase` runs in
            all audits with one budget, which the first one decides.
        plan: settings of the optimizer and the loss; the meter sets all others.
        weights: weights of the trained model, which are compared with the model as it is built.

    Raises:
        InputError: something cannot work, or `plan` sets what the meter varies.
    """
    return _performed(Meter.of(AuditCase(model, data, attacks, (), plan, HONEST, weights, victims, criteria, run)))


def perform_realism(experiment: Experiment) -> Realism:
    """Run `realism` for an experiment given as strings and numbers."""
    return _performed(_meter(experiment))


def foresee_realism(experiment: Experiment) -> Outlook:
    """Return the plan of these audits; nothing is written."""
    meter = _meter(experiment)
    with _prepared(meter) as (cases, isolation, place):
        return Outlook.of((run, foreseen_of(one, isolation, place)) for run, one in cases.scenarios.items())


def remake(out: Path) -> Realism:
    """Write a finished meter's page and tables again from its rows.

    Raises:
        InputError: `out` holds no realism meter, or an unfinished one.
    """
    with reading(out):
        noted = RunDirectory(out, REALISM).noted_as(_Noted)
        reports = {run: reread(out / RUNS / run) for run in dict.fromkeys(case.run for case in noted.cases)}
        return written(out, Realism(noted.cases, reports, noted.left_out))


@dataclass(frozen=True)
class _Noted:
    """The parts of ``run.json`` behind the page, which another party may have written.

    Raises:
        InputError: there is no first case.
    """

    cases: tuple[Case, ...]
    left_out: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.cases or self.cases[0].name != FAVORABLE:
            raise InputError("its first case is missing")


def _meter(experiment: Experiment) -> Meter:
    if experiment.rounds is not None:
        raise InputError("--rounds does not go with --realism, which compares a training's last round with round 0")
    if is_record(experiment.data):
        raise InputError("--realism needs images: a record holds an update, whose assumptions cannot be dropped")
    return Meter.of(case_of(experiment))


def _performed(meter: Meter) -> Realism:
    run = meter.audit.run
    with pulsing(run.visible):
        if run.out is None:
            with _prepared(meter) as (cases, isolation, place):
                return _found(cases, _reports(cases, isolation, place, run.visible))
        out = Path(run.out)
        made(out)
        directory = RunDirectory(out, REALISM, Identity(_entries(meter.audit), Code.of(tuple), key_of(out, run.force)))
        with directory.locked():
            directory.claim(run.force)
            with _prepared(meter) as (cases, isolation, place):
                directory.note(cases=[asdict(case) for case in cases.cases], left_out=cases.left_out)
                return written(out, _found(cases, _reports(cases, isolation, place, run.visible)))


def _entries(audit: AuditCase) -> dict[str, object]:
    """Return the meter's distinguishing settings; each audit compares model, images and attacks itself."""
    told = {**audit.victims.told(), **audit.criteria.told(), **audit.run.told()}
    return {**told, "tolerance": audit.criteria.tolerance, "plan": repr(audit.plan)}


def _found(cases: Cases, reports: dict[str, Report]) -> Realism:
    return Realism(tuple(cases.cases), reports, tuple(cases.left_out))


@contextmanager
def _prepared(meter: Meter) -> Iterator[tuple[Cases, Isolation, str]]:
    """Yield the cases with their attacks, the isolation of these, and the images' place."""
    run = meter.audit.run
    runs = None if run.out is None else Path(run.out) / RUNS
    first = replace(meter.audit, run=replace(run, out=None if runs is None else runs / FAVORABLE))
    with first.scene() as (scenario, isolation, place):
        also = [] if runs is None else [folder for folder in runs.glob("*") if known_in(folder)]
        bare = replace(scenario, defenses=scenario.defenses[:1])  # the time for searches is that of one audit
        decided, _ = feasible(bare, isolation, also)
        cases = cases_of(meter, replace(scenario, attacks=decided.attacks))
        outs = {name: None if runs is None else runs / name for name in cases.scenarios}
        own = {name: replace(one, run=replace(run, out=outs[name])) for name, one in cases.scenarios.items()}
        yield cases._replace(scenarios=own), isolation, place


def _reports(cases: Cases, isolation: Isolation, place: str, visible: bool) -> dict[str, Report]:
    """Run all audits; they share the study's secret, so that an image has one index in all of them."""
    pace, secret = Pace({"audit": len(cases.scenarios)}, visible), secrets.token_hex(16)
    texts = {case.run: f"audit with {case.text}" for case in cases.cases} | {FAVORABLE: "audit of the favorable case"}
    found = {}
    for name, scenario in cases.scenarios.items():
        with pace.one("audit", texts[name]):
            found[name] = executed(scenario, isolation, place, secret=secret)
    return found
