"""Trains and audits all settings of a frontier, continuing where an earlier call stopped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from medpfl.auditing.execution import WORK, shared_attacks
from medpfl.auditing.report import Report, reread
from medpfl.auditing.run import case_of, perform
from medpfl.auditing.run import foresee as foresee_audit
from medpfl.core.errors import DivergedError, InputError
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.groups import About
from medpfl.core.experiments.signatures import taking
from medpfl.core.messages import say
from medpfl.core.progress import phase
from medpfl.engines.choice import engine_of, ready, workers_of
from medpfl.engines.engine import Inline, Lost
from medpfl.reporting.training import judging_set
from medpfl.reporting.words import percent
from medpfl.runs.directory import RUNS, RunDirectory, known_in, reading
from medpfl.runs.estimate import Pace
from medpfl.runs.folders import check_made, made
from medpfl.runs.identity import Code, Identity, unchanged
from medpfl.runs.outlook import Outlook
from medpfl.runs.pulse import pulsing
from medpfl.runs.study_key import Key, key_of
from medpfl.tradeoff.choice import no_better_than_guessing
from medpfl.tradeoff.limits import limits_of
from medpfl.tradeoff.result import FRONTIER, Found, FrontierResult, results, write_recommended
from medpfl.tradeoff.tasks import Setting, audit_of, check, code_of, strengths_of, training_of, with_images
from medpfl.training.report import read_training, reread_training
from medpfl.training.store import whole_rounds
from medpfl.training.train import foresee as foresee_training
from medpfl.training.train import perform_training

__all__ = ["foresee", "frontier", "perform_frontier", "remake"]

_TRAINING, _AUDIT = "training", "audit"


@taking(Frontier)
def frontier(experiment: Frontier) -> FrontierResult:
    """Measure leakage against accuracy for each defense and strength, and recommend a setting under a limit.

    Every training and audit has its own directory in ``OUT/runs``. Repeat the same call to continue a killed frontier;
    only the limit may change. The key to the images lies beside ``OUT``.

    Args:
        data, model, weights, cohort, plan, schedule: as in `medpfl.train`, as texts.
        defense: specs of the defenses to compare, also with sweeps; at least two settings in all.
        attack, grant: specs of the attacks, and the attacker's grants, as in `medpfl.audit`.
        limit: limits on leakage, such as ``"asr<=0.05"``.
        tolerance, accept_leak: share of images that may leak, and True to recommend a setting that leaks.
        seeds: number of trainings for each setting.
        round, images, images_per_update, draws: the attacked model and updates.
        run: seed, device and so on. ``run.out`` is needed: figure, tables and recommendation go into its ``share``.

    Raises:
        InputError: if anything cannot work.
    """
    return perform_frontier(experiment)


def perform_frontier(experiment: Frontier) -> FrontierResult:
    """Run `frontier` for an experiment."""
    with pulsing(experiment.run.visible), ready(experiment.run, *WORK, __name__, "matplotlib.figure"):
        return _performed(experiment)


def _performed(experiment: Frontier) -> FrontierResult:
    plain, limits = strengths_of(experiment.defense), limits_of(experiment.limit, experiment.tolerance)
    experiment = with_images(experiment, limits)
    check(experiment)
    out, force = experiment.out, experiment.run.force
    made(out)
    identity = _identity(experiment, plain, key_of(out, force))
    directory = RunDirectory(out, FRONTIER, identity)
    settings = [setting._replace(spec=identity.cloak(setting.spec)) for setting in plain]
    with directory.locked():
        directory.claim(force)
        directory.note(limits=list(map(str, limits)), accept_leak=experiment.accept_leak)
        count = len(settings)
        pace = Pace(
            {_TRAINING: count * experiment.seeds, _AUDIT: count if experiment.round else 1}, experiment.run.visible
        )
        with unchanged(identity.code, directory):
            tasks = list(product(settings, _seeds(experiment.options())))
            # The first trainings, then the audit: what cannot be trained or audited fails before hours of work.
            first = len(tasks) if experiment.round else workers_of(experiment.run)
            diverged = _trained(experiment, tasks[:first], out, pace)
            _warn_if_no_better_than_guessing(_training(out, *tasks[0]))
            audits = {} if experiment.round else _audited_at_once(experiment, settings, out, pace)
            diverged |= _trained(experiment, [t for t in tasks[first:] if t[0].spec not in diverged], out, pace)
            going = [s for s in settings if s.spec not in diverged]
            directory.note(diverged=[s.spec for s in settings if s.spec in diverged])
            if experiment.round:
                audits = _audited(experiment, going, out, pace)
        with phase("writing figure, tables and page"):
            trainings = {
                s.spec: [read_training(_training(out, s, seed)) for seed in _seeds(experiment.options())] for s in going
            }
            result = results(out, Found(known_in(out), settings, audits, trainings))
        write_recommended(out, experiment, settings, result)
    return result


def _identity(experiment: Frontier, settings: Sequence[Setting], key: Key) -> Identity:
    return Identity(_entries(experiment, settings), Code.of(lambda: code_of(experiment)), key)


def foresee(experiment: Frontier) -> Outlook:
    """Return a frontier's plan, from one round of training and a few steps of each attack; nothing is written.

    A round's model does not exist yet, so the audit's time is that on the untrained one.
    """
    settings = strengths_of(experiment.defense)
    experiment = with_images(experiment, limits_of(experiment.limit, experiment.tolerance))
    check(experiment)
    out, force = experiment.out, experiment.run.force
    check_made(out)
    RunDirectory(out, FRONTIER, _identity(experiment, settings, key_of(out, force, keep=False))).check(force)
    seed = experiment.run.seed
    first = foresee_training(training_of(experiment, settings[0], seed, None))  # the time of all rounds
    parts = []
    for setting, seed in product(settings, _seeds(experiment.options())):
        (step,) = first.steps
        done = min(len(whole_rounds(_training(out, setting, seed))), step.jobs)
        left = (step.seconds or 0.0) * (step.jobs - done) / step.jobs
        own = replace(step, what=f"training under {setting.spec}, seed {seed}", done=done, seconds=left)
        parts.append(("trainings", Outlook((own,), first.memory)))
    at = f"audits of round {experiment.round}" if experiment.round else "audit"
    parts.append((at, foresee_audit(audit_of(experiment, settings, _audit(out)))))
    return Outlook.of(parts)


def remake(out: Path) -> FrontierResult:
    """Write a finished frontier's figure, tables and page again from its rows; ``recommended.yaml`` stays.

    Raises:
        InputError: if `out` holds no frontier, or an unfinished one.
    """
    with reading(out):
        return _remade(out)


def _remade(out: Path) -> FrontierResult:
    known = RunDirectory(out, FRONTIER).noted()
    identity = known["identity"]
    settings = [Setting(i, spec, None) for i, spec in enumerate(identity["settings"])]
    if "diverged" not in known:
        raise InputError(f"'{out}' holds an unfinished frontier: repeat the same frontier command to finish it")
    going = [s for s in settings if s.spec not in known["diverged"]]
    trainings = {s.spec: [reread_training(_training(out, s, seed)) for seed in _seeds(identity)] for s in going}
    if identity["round"]:
        audits = {s.spec: reread(_audit(out, s)) for s in going}
    else:
        audits = dict.fromkeys(identity["settings"], reread(_audit(out)))
    return results(out, Found(known, settings, audits, trainings))


def _entries(experiment: Frontier, settings: Sequence[Setting]) -> dict[str, Any]:
    """Return this frontier's distinguishing settings, without paths. Each run compares model, images and weights."""
    paths = ("data", "model", "weights", "validation", "test", "attack", "defense", "limit", "tolerance", "accept_leak")
    alike = (
        "isolate",
        "engine",
        "workers",
        "out",
        "force",
        "numbers_only",
        *(one.name for one in fields(About)),
    )  # rows are equal either way
    return {
        "settings": [setting.spec for setting in settings],
        **{name: value for name, value in experiment.options().items() if name not in (*paths, *alike)},
    }


def _seeds(identity: dict[str, Any]) -> range:
    return range(identity["seed"], identity["seed"] + identity["seeds"])


def _training(out: Path, setting: Setting, seed: int) -> Path:
    return out / RUNS / f"training-{setting.place}-seed-{seed}"


def _audit(out: Path, setting: Setting | None = None) -> Path:
    return out / RUNS / ("audit" if setting is None else f"audit-{setting.place}")


def _warn_if_no_better_than_guessing(undefended: Path) -> None:
    training = read_training(undefended)
    score, classes = training.rows[-1].scores[judging_set(training.rows)], training.settings["data"]["classes"]
    if no_better_than_guessing(score["balanced_accuracy_low"], classes):
        say(
            f"note: undefended, the trained model's balanced accuracy is {percent(score['balanced_accuracy'])}, and "
            f"guessing reaches {percent(1 / classes)}. So far nothing can be recommended: train longer (--rounds, "
            "--epochs) or with another --learning-rate, or score on more images (--validation)"
        )


def _audited_at_once(experiment: Frontier, settings: list[Setting], out: Path, pace: Pace) -> dict[str, Report]:
    """Audit all settings in one run, so that they share one undefended control."""
    with pace.one(_AUDIT, f"audit of {len(settings)} settings"):
        report = perform(audit_of(experiment, settings, _audit(out)))
    return {setting.spec: report for setting in settings}


def _audited(experiment: Frontier, settings: list[Setting], out: Path, pace: Pace) -> dict[str, Report]:
    """Audit each setting on its own trained model; all audits have the same attacks."""
    audits, found = {}, {}
    for s in settings:
        model = _training(out, s, experiment.run.seed) / f"round-{experiment.round}"
        audits[s.spec] = case_of(audit_of(experiment, [s], _audit(out, s), str(model)))
    attacks = shared_attacks([*audits.values()])
    for spec, audit in audits.items():
        with pace.one(_AUDIT, f"audit of {spec}"):
            found[spec] = replace(audit, attacks=attacks).report()
    return found


class _Training(NamedTuple):
    """Trains a setting under a seed, in its own run directory; returns True if it diverges, as it may under noise."""

    experiment: Frontier
    out: Path

    def __call__(self, task: tuple[Setting, int]) -> bool:
        setting, seed = task
        try:
            perform_training(training_of(self.experiment, setting, seed, _training(self.out, setting, seed)))
        except DivergedError:
            if setting.given is None:
                raise  # without a defense there is nothing to compare with
            return True
        return False


def _trained(experiment: Frontier, tasks: Sequence[tuple[Setting, int]], out: Path, pace: Pace) -> set[str]:
    """Train settings under seeds, several at once if the engine does; return the specs of those that diverge.

    Raises:
        InputError: a training's worker ended each time; the other trainings are done and kept.
    """
    engine, diverged, lost = engine_of(experiment.run), set[str](), ""
    if not tasks:
        return diverged
    if isinstance(engine, Inline):
        work = _Training(experiment, out)
        for setting, seed in tasks:
            if setting.spec not in diverged:
                with pace.one(_TRAINING, f"training with {setting.spec}, seed {seed}"):
                    diverged |= {setting.spec} if work((setting, seed)) else set()
        return diverged
    work = _Training(experiment.having(progress=False), out)
    with pace.several(_TRAINING, len(tasks)), closing(engine.results(work, tasks)) as results:
        for place, found in results:
            setting, seed = tasks[place]
            if isinstance(found, Lost):
                lost = lost or f"the training with {setting.spec}, seed {seed}, could not be finished: {found.why}"
            elif found:
                diverged.add(setting.spec)
            pace.ended(_TRAINING)
    if lost:
        raise InputError(f"{lost}; repeat the command to try it again")
    return diverged
