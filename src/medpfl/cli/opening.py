"""The first line of every command: what it will do, as far as the command line tells. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from medpfl.core.errors import private
from medpfl.core.experiments.evaluation import EDITIONS, Evaluating
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.inspection import Inspection
from medpfl.core.experiments.limits import USUAL_IMAGES
from medpfl.core.experiments.recording import Forgetting, Looking, Recording
from medpfl.core.experiments.training import Training
from medpfl.core.messages import counted
from medpfl.core.plan import Plan
from medpfl.core.spec import expand
from medpfl.reproduction.experiments import EXPERIMENTS
from medpfl.reproduction.scale import Studies

__all__ = ["opening"]

_FEW = 6
_STANDARD = "analytic attacks"
_RECORD = ".safetensors"
"""Suffix of a recorded update, and of a pattern that finds several."""


def opening(asked: object) -> str:
    """Return what a command will do with its typed options.

    >>> opening(Experiment.of(attack=["iDLG"], images=4))
    "audit of LeNet('dlg') with the embedded samples: 4 images, attack iDLG, no defense"
    >>> opening(Training.of(rounds=2))
    "training of ConvNet(width=16, depth=3, norm='batch') with the embedded samples: 2 rounds of FedAvg, no defense"
    """
    return next((text(asked) for kind, text in _TEXTS.items() if isinstance(asked, kind)), str(asked))


def _of_training(asked: Training) -> str:
    return f"training of {asked.model} with {_data(asked.data)}: {_rounds(asked)}, {_defenses(asked.defense)}"


def _of_look(asked: Looking) -> str:
    return "look at a record" + (" and compare it with a repeated training" if asked.truth else "")


def _of_audit(asked: Experiment) -> str:
    if asked.realism:
        return _of_realism(asked)
    several = f", in rounds {asked.rounds}" if asked.rounds else ""
    # A record has the images of its training, whatever --images says.
    images = "its images" if asked.truth or asked.data.endswith(_RECORD) else _images(asked.victims.images, asked.plan)
    attacks = _attacks(asked.attack) if asked.attack else _standard(asked.run.minutes)
    return f"audit of {asked.model}{several} with {_data(asked.data)}: {images}, {attacks}, {_defenses(asked.defense)}"


def _of_realism(asked: Experiment) -> str:
    attacks = _attacks(asked.attack) if asked.attack else _standard(asked.run.minutes, "in each case about ")
    images = _images(asked.victims.images, asked.plan)
    return f"realism meter of {asked.model} with {_data(asked.data)}: {images}, {attacks}, with and without assumptions"


def _standard(minutes: float, about: str = "") -> str:
    return f"{_STANDARD}, and {about}{minutes:g} min of searches" if minutes else f"{_STANDARD} alone"


def _of_frontier(asked: Frontier) -> str:
    count = len([one for text in asked.defense for one in expand(text)]) + 1
    trainings = f"{counted(count * asked.seeds, 'training')} with {_rounds(asked)}"
    return f"frontier of {asked.model} with {_data(asked.data)}: {trainings}, {_defenses(asked.defense)}; then audits"


def _of_studies(asked: Studies) -> str:
    if asked.from_:
        return f"tables of the reproduction in {asked.from_}, again"
    return f"reproduction of {', '.join(asked.experiment or EXPERIMENTS)}, with the data sets in {_data(asked.data)}"


def _data(data: str) -> str:
    """Return the data's name, which only a terminal shows."""
    return "the embedded samples" if data == "samples" else private(data, "your data")


def _images(images: int | None, plan: Plan) -> str:
    each = f", {plan.batch_size} in a batch" if plan.batch_size > 1 else ""
    return (f"{images} image{'s' * (images != 1)}" if images else f"up to {USUAL_IMAGES} images") + each


def _rounds(asked: Training) -> str:
    return f"{counted(asked.schedule.rounds, 'round')} of {asked.plan.algorithm}"


def _attacks(specs: Sequence[str]) -> str:
    return f"attack{'s' * (len(specs) != 1)} {_listed(specs)}"


def _defenses(specs: Sequence[str]) -> str:
    return f"defense{'s' * (len(specs) != 1)} {_listed(specs)}" if specs else "no defense"


def _listed(specs: Sequence[str]) -> str:
    more = f" and {len(specs) - _FEW} more" if len(specs) > _FEW else ""
    return ", ".join(specs[:_FEW]) + more


_TEXTS: dict[type, Callable[[Any], str]] = {
    Frontier: _of_frontier,  # before its base
    Training: _of_training,
    Experiment: _of_audit,
    Evaluating: lambda asked: (
        f"{asked.edition} of {asked.model} with {_data(asked.data)}: up to {EDITIONS[asked.edition].images} images, "
        f"{EDITIONS[asked.edition].attack}, {_defenses(asked.defense)}"
    ),
    Inspection: lambda asked: (
        f"check of {asked.model}: what its updates reveal, and which attacks apply, without images"
    ),
    Recording: lambda _: "record of an update from two states of a model",
    Looking: _of_look,
    Forgetting: lambda _: "deletion of the truth files in a folder of records",
    Studies: _of_studies,
}
