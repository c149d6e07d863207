"""The trainings and audits that make up a frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from medpfl.auditing.isolating import isolating
from medpfl.core.errors import InputError
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.groups import ClientImages, Criteria, Victims
from medpfl.core.experiments.limits import USUAL_IMAGES
from medpfl.core.experiments.training import Training
from medpfl.core.spec import expand
from medpfl.core.verdicts import UNDEFENDED
from medpfl.inputs.parts import attacks_of, defenses_given, defenses_of, model_of
from medpfl.tradeoff.limits import Limit, updates_for
from medpfl.training.train import OF_ATTACKS

__all__ = ["Setting", "audit_of", "check", "code_of", "strengths_of", "training_of", "with_images"]


class Setting(NamedTuple):
    """A defense at one strength.

    Attributes:
        place: the setting's number; the undefended one is 0.
        spec: the defense's spec, as in rows.
        given: the user's text, which may name a file; ``None`` for the undefended setting.
    """

    place: int
    spec: str
    given: str | None


def strengths_of(defenses: list[str]) -> list[Setting]:
    """Return the undefended setting and one for each defense and strength.

    Raises:
        InputError: if a spec is wrong, or fewer than two settings have a defense.
    """
    texts = [text for one in defenses for text in expand(one)]
    specs = {repr(defenses_of([text])[-1]): text for text in texts}
    specs.pop(UNDEFENDED, None)
    if len(specs) < 2:
        raise InputError(
            f"a frontier with {len(specs) or 'no'} defended setting{'s' * (not specs)} has nothing to choose from: "
            "give several strengths, such as --defense 'LaplaceNoise(scale=geom(0.001, 0.1, 5))', or several "
            "defenses; for a single setting, use 'medpfl train' and 'medpfl audit'"
        )
    defended = [Setting(place, spec, text) for place, (spec, text) in enumerate(specs.items(), start=1)]
    return [Setting(0, UNDEFENDED, None), *defended]


def check(experiment: Frontier) -> None:
    """Raise `InputError` for mistakes that show without reading an image."""
    model, defenses = model_of(experiment.model), defenses_given(experiment.defense)
    with isolating(experiment.attack, experiment.run.isolate, model, defenses) as isolation:
        attacks_of(isolation.attacks, isolation.worker)
    if experiment.round > experiment.schedule.rounds:
        raise InputError(f"--round is {experiment.round}, but --rounds is only {experiment.schedule.rounds}")
    if experiment.images is not None and experiment.images < experiment.images_per_update:
        raise InputError(
            f"--images is {experiment.images}, fewer than one update holds (--images-per-update is "
            f"{experiment.images_per_update})"
        )


def with_images(experiment: Frontier, limits: Sequence[Limit]) -> Frontier:
    """Return the experiment with its number of images set; the default is enough updates to prove the limits."""
    if experiment.images is not None:
        return experiment
    updates = max(updates_for(limits) or 1, -(-USUAL_IMAGES // experiment.images_per_update))
    return experiment.having(images=updates * experiment.images_per_update)


def code_of(experiment: Frontier) -> list[Any]:
    """Return a frontier's defenses and model, which may contain user code.

    Attacks are left out: each audit compares them itself, because they may run in a separate process.
    """
    defenses = defenses_of([text for one in experiment.defense for text in expand(one)])
    return [*defenses, model_of(experiment.model)]


def training_of(experiment: Frontier, setting: Setting, seed: int, out: Path | None) -> Training:
    """Return a setting's training under a seed, with its own run directory.

    It runs in one process: a frontier's trainings run at the same time.
    """
    return Training(
        data=experiment.data,
        model=experiment.model,
        weights=experiment.weights,
        defense=[] if setting.given is None else [setting.given],
        cohort=experiment.cohort,
        plan=experiment.plan,
        schedule=experiment.schedule,
        run=replace(
            experiment.run,
            seed=seed,
            out=out,
            **{name: getattr(Training.run, name) for name in (*OF_ATTACKS, "engine", "workers")},
        ),
    )


def audit_of(experiment: Frontier, settings: list[Setting], out: Path, model: str | None = None) -> Experiment:
    """Return the audit of some settings, on untrained weights or on the checkpoint named by `model`.

    It uses the training's client settings, but only ``images_per_update`` images per update. An update over a client's
    whole data is harder to attack, so this is the worst case for the training.
    """
    count, plan, cohort = experiment.images_per_update, experiment.plan, experiment.cohort
    whole = plan.algorithm == "FedSGD" and plan.sampling == "shuffle"
    assert experiment.images is not None, "`with_images` comes first"
    return Experiment(
        data=experiment.data,
        model=experiment.model if model is None else model,
        weights=experiment.weights if model is None else None,
        attack=experiment.attack,
        defense=[setting.given for setting in settings if setting.given is not None],
        grant=experiment.grant,
        victims=Victims(
            images=experiment.images,
            draws=experiment.draws if model is None else 1,
            **{one.name: getattr(cohort, one.name) for one in fields(ClientImages)},
        ),
        plan=replace(
            plan,
            batch_size=count if whole else min(plan.batch_size, count),
            local_images=None if whole else count,
        ),
        criteria=Criteria(tolerance=experiment.tolerance, delta=experiment.schedule.delta),
        run=replace(experiment.run, out=out),
    )
