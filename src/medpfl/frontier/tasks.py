"""A frontier as the trainings and audits that it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from medpfl.auditing.isolating import isolating
from medpfl.core.errors import InputError
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.training import Training
from medpfl.core.spec import expand
from medpfl.core.verdicts import UNDEFENDED
from medpfl.frontier.limits import Limit, updates_for
from medpfl.inputs.parts import attacks_of, defenses_given, defenses_of, model_of

__all__ = ["Setting", "audit_of", "check", "parts_of", "settings_of", "training_of", "with_images"]

_IMAGES = 32
"""Attacked where no number is given, or more if the limits need more updates."""


class Setting(NamedTuple):
    """A defense at one strength.

    Attributes:
        place: its number; the undefended one is 0.
        spec: as rows state it.
        given: as the user gave it, which may name a file; ``None`` for the undefended one.
    """

    place: int
    spec: str
    given: str | None


def settings_of(defenses: list[str]) -> list[Setting]:
    """The undefended setting, and one for each defense and strength.

    Raises:
        InputError: a wrong spec, or less than two settings with a defense.
    """
    texts = [text for one in defenses for text in expand(one)]
    specs = {repr(defenses_of([text])[-1]): text for text in texts}
    specs.pop(UNDEFENDED, None)
    if len(specs) < 2:
        raise InputError(
            f"a frontier of {len(specs) or 'no'} defended setting{'s' * (not specs)} has nothing to choose from: give "
            "several strengths, as in --defense 'LaplaceNoise(scale=geom(0.001, 0.1, 5))', or several defenses; of "
            "one setting, 'medpfl train' and 'medpfl audit' say the rest"
        )
    defended = [Setting(place, spec, text) for place, (spec, text) in enumerate(specs.items(), start=1)]
    return [Setting(0, UNDEFENDED, None), *defended]


def check(experiment: Frontier) -> None:
    """Raises `InputError` for what cannot work, as far as that is seen without reading an image."""
    model, defenses = model_of(experiment.model), defenses_given(experiment.defense)
    with isolating(experiment.attack, experiment.isolate, model, defenses) as isolation:
        attacks_of(isolation.attacks, isolation.worker)
    if experiment.round > experiment.rounds:
        raise InputError(f"--round is {experiment.round}, but a training has {experiment.rounds} rounds")
    if experiment.images is not None and experiment.images < experiment.images_per_update:
        raise InputError(
            f"--images is {experiment.images}, less than the {experiment.images_per_update} images of one update"
        )


def with_images(experiment: Frontier, limits: Sequence[Limit]) -> Frontier:
    """Return the experiment with a number of images: as given, or as many updates as can show the limits."""
    if experiment.images is not None:
        return experiment
    updates = max(updates_for(limits) or 1, -(-_IMAGES // experiment.images_per_update))
    return experiment.model_copy(update={"images": updates * experiment.images_per_update})


def parts_of(experiment: Frontier) -> list[Any]:
    """Return defenses and model of a frontier, any of which may be the user's own.

    Its attacks are compared by each audit, where they may run in a process of their own.
    """
    defenses = defenses_of([text for one in experiment.defense for text in expand(one)])
    return [*defenses, model_of(experiment.model)]


def training_of(experiment: Frontier, setting: Setting, seed: int) -> Training:
    """The training of a setting under a seed."""
    fields = {name: getattr(experiment, name) for name in Training.model_fields}
    own = {"defense": [] if setting.given is None else [setting.given], "seed": seed}
    return Training(**{**fields, **own})


def audit_of(experiment: Frontier, settings: list[Setting], model: str | None = None) -> Experiment:
    """The audit of some settings: of untrained weights, or of the checkpoint that `model` names.

    The client is that of the training, with as few images as are asked for: a round over a client's whole data is
    harder to read, so that what is read of a few of them is the worst case of what the training sends.
    """
    count, small = experiment.images_per_update, min(experiment.batch_size, experiment.images_per_update)
    whole = experiment.algorithm == "FedSGD" and experiment.sampling == "shuffle"
    fields = {name: getattr(experiment, name) for name in Experiment.model_fields if hasattr(experiment, name)}
    own = {
        "defense": [setting.given for setting in settings if setting.given is not None],
        "batch_size": count if whole else small,
        "local_images": None if whole else count,
        "rounds": None,
    }
    if model is not None:
        own |= {"model": model, "weights": None, "draws": 1}
    return Experiment(**{**fields, **own})
