"""Trains and audits all settings of a frontier, continuing where an earlier call stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from medpfl.auditing.report import reread
from medpfl.auditing.run import perform
from medpfl.core.errors import DivergedError, InputError
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.groups import About
from medpfl.core.messages import say as tell
from medpfl.frontier.limits import limits_of
from medpfl.frontier.result import FRONTIER, Found, Result, results, write_recommended
from medpfl.frontier.tasks import Setting, audit_of, check, parts_of, strengths_of, training_of, with_images
from medpfl.runs.directory import RUNS, RunDirectory, known_in, made, reading
from medpfl.runs.identity import Code, Identity, unchanged
from medpfl.runs.study_key import key_of
from medpfl.training.report import Trained, reread_training
from medpfl.training.train import perform_training

__all__ = ["frontier", "remake"]

Report = Any


def frontier(experiment: Frontier) -> Result:
    """Measure leakage against accuracy for each defense and strength, and recommend a setting under a limit.

    Every training and audit has its own directory in ``OUT/runs``. Repeat the same call to continue a killed frontier;
    only the limit may change. The key to the images lies beside ``OUT``.

    Args:
        experiment: the trainings, audits and limits. Figure, tables and recommendation go into ``share`` of its
            ``run.out``.

    Raises:
        InputError: if anything cannot work.
    """
    plain, limits = strengths_of(experiment.defense), limits_of(experiment.limit, experiment.tolerance)
    experiment = with_images(experiment, limits)
    check(experiment)
    out, force = experiment.out, experiment.run.force
    made(out)
    code = Code.of(lambda: parts_of(experiment))
    identity = Identity(_entries(experiment, plain), code, key_of(out, force))
    settings = [setting._replace(spec=identity.cloak(setting.spec)) for setting in plain]
    directory = RunDirectory(out, FRONTIER, identity)
    with directory.locked():
        directory.claim(force)
        directory.note(limits=list(map(str, limits)), accept_leak=experiment.accept_leak)
        say: Callable[[str], Any] = tell if experiment.run.progress else lambda _: None
        with unchanged(code, directory):
            # One training, then the audit: what cannot be trained or audited fails before hours of work.
            trainings = {s.spec: _trained(experiment, s, out, say) for s in settings[:1]}
            audits = {} if experiment.round else _audited_at_once(experiment, settings, out, say)
            trainings |= {s.spec: _trained(experiment, s, out, say) for s in settings[1:]}
            directory.note(diverged=[spec for spec, own in trainings.items() if own is None])
            if experiment.round:
                audits = {s.spec: _audited(experiment, s, out, say) for s in settings if trainings[s.spec] is not None}
        result = results(out, Found(known_in(out), settings, audits, trainings))
        write_recommended(out, experiment, settings, result)
    return result


def remake(out: Path) -> Result:
    """Write a finished frontier's figure, tables and page again from its rows; ``recommended.yaml`` stays.

    Raises:
        InputError: if `out` holds no frontier, or an unfinished one.
    """
    with reading(out):
        return _remade(out)


def _remade(out: Path) -> Result:
    known = RunDirectory(out, FRONTIER).noted()
    identity = known["identity"]
    settings = [Setting(i, spec, None) for i, spec in enumerate(identity["settings"])]
    if "diverged" not in known:
        raise InputError(f"'{out}' holds an unfinished frontier: repeat the same frontier command to finish it")
    going = [s for s in settings if s.spec not in known["diverged"]]
    trainings: dict[str, list[Trained] | None] = {s.spec: None for s in settings}
    for s in going:
        trainings[s.spec] = [reread_training(_training(out, s, seed)) for seed in _seeds(identity)]
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


def _audited_at_once(
    experiment: Frontier, settings: list[Setting], out: Path, say: Callable[[str], Any]
) -> dict[str, Report]:
    """Audit all settings in one run, so that they share one undefended control."""
    say(f"audit of {len(settings)} settings")
    report = perform(audit_of(experiment, settings, _audit(out)))
    return {setting.spec: report for setting in settings}


def _audited(experiment: Frontier, setting: Setting, out: Path, say: Callable[[str], Any]) -> Report:
    say(f"audit of {setting.spec}")
    model = _training(out, setting, experiment.run.seed) / f"round-{experiment.round}"
    return perform(audit_of(experiment, [setting], _audit(out, setting), str(model)))


def _trained(experiment: Frontier, setting: Setting, out: Path, say: Callable[[str], Any]) -> list[Trained] | None:
    """Train under all seeds; return ``None`` if a training diverges, as it may under strong noise."""
    found = []
    for seed in _seeds(experiment.options()):
        say(f"training with {setting.spec}, seed {seed}")
        own = _training(out, setting, seed)
        try:
            found.append(perform_training(training_of(experiment, setting, seed, own)))
        except DivergedError:
            if setting.given is None:
                raise  # without a defense there is nothing to compare with
            return None
    return found
