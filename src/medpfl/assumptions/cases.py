"""The cases of the realism meter: the most favorable one for an attacker, and others that drop its assumptions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from medpfl.auditing.feasibility import Feasibility
from medpfl.auditing.run import AuditCase
from medpfl.auditing.scenario import Scenario
from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import shortened
from medpfl.core.experiments.options import options_in
from medpfl.core.messages import told
from medpfl.core.plan import Plan
from medpfl.core.progress import phase
from medpfl.core.roles import NO_DEFENSE, Model
from medpfl.core.threat import ThreatModel
from medpfl.core.verdicts import UNDEFENDED
from medpfl.inputs.checkpoint import Checkpoint, checkpoint_at, is_checkpoint, round_folder
from medpfl.models.user import UserModel
from medpfl.runs.environment import explained, generator_of

ModelLike = str | Path | Model | nn.Module

__all__ = ["FAVORABLE", "TOGETHER", "Case", "Cases", "Meter", "cases_of"]

FAVORABLE, TOGETHER = "favorable", "together"
"""Names of the first case and of the last one, without any of its assumptions."""

_BATCHES = (4, 8, 16)
_BATCH = 8
"""Largest batch in the last case."""
_LOCAL, _STEPS = 5, (5, 20)
"""Images in an update of several steps, one in each step, and numbers of steps: one epoch, and four."""
_NOISES = (0.01, 0.1)
"""Scales of Laplace noise, relative to the root mean square of each layer's update."""
_KNOWN = ThreatModel(("labels", "defense"))

_OWN = ("algorithm", "batch_size", "local_images", "epochs", "sampling", "mode")
"""Options of the plan that the meter sets."""


@dataclass(frozen=True)
class Case:
    """A case, as ``run.json`` states it.

    Attributes:
        name: its name in files.
        assumption: the assumption that it drops, in a word or two.
        text: what holds instead, in words; for the first case, all assumptions.
        run: name of its audit's run directory.
        defense: spec of the defense in that audit.

    Raises:
        InputError: a name or text does not have the form that MedPFL writes; another party may have written it.
    """

    name: str
    assumption: str
    text: str
    run: str
    defense: str = UNDEFENDED

    def __post_init__(self) -> None:
        for name in (self.name, self.run):
            if not re.fullmatch(r"[a-z0-9-]{1,40}", name):
                raise InputError(f"{shortened(name)} is no name of a case")
        for text in (self.assumption, self.text):
            if len(text) > 200 or not text.isprintable():
                raise InputError(f"{shortened(text)} is no text of a case")


class Cases(NamedTuple):
    """The cases, what their audits determine, and what was left out.

    Attributes:
        cases: the cases, in order.
        scenarios: the scenario of each audit, by the name of its run directory.
        left_out: sentences on what was not tested.
    """

    cases: list[Case]
    scenarios: dict[str, Scenario]
    left_out: list[str]


@dataclass(frozen=True)
class Meter:
    """The model before and after its training, and the settings that all cases share.

    Attributes:
        audit: the audit of the first case.
        trained: changes to its scenario that give the trained model.
        training: the trained model in words.
        gap: why there is no trained model; ``""`` if there is one.
    """

    audit: AuditCase
    trained: dict[str, Any]
    training: str
    gap: str = ""

    @classmethod
    def of(cls, asked: AuditCase) -> Meter:
        """Return the meter for an experiment.

        Raises:
            InputError: the experiment sets something that the meter varies.
        """
        _check(asked)
        model, trained, training, gap = _models(asked.model, asked.weights)
        noises = [f"LaplaceNoise(scale={scale}, relative='layer')" for scale in _NOISES]
        plan = replace(asked.plan, mode="eval")
        audit = replace(asked, model=model, weights=None, defenses=noises, plan=plan, threat=_KNOWN)
        return cls(audit, trained, training, gap)

    def assumed(self, favorable: Scenario) -> str:
        """Return all assumptions of the first case, in words."""
        model = favorable.model
        ours = type(model).__module__.startswith("medpfl.models.") and not isinstance(model, UserModel)
        first = model.round == 0 if isinstance(model, Checkpoint) else ours or not self.gap
        untrained = "an untrained model, " if first else ""  # of a person's own model, only the person knows
        return f"1 image per update, eval mode, {untrained}1 local step, known labels, no noise"


def _check(asked: AuditCase) -> None:
    for name in _OWN:
        if getattr(asked.plan, name) != options_in(Plan)[name].default:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"the realism meter varies {name.replace('_', ' ')} itself: leave out {option}")
    if asked.threat != ThreatModel():
        raise InputError("the realism meter varies what the attacker knows itself: leave out --grant and --naive")
    if asked.defenses:
        raise InputError(
            "the realism meter tests the model without a defense and with noise: leave out --defense (to test "
            "defenses: medpfl audit DATA --defense SPEC, without --realism)"
        )


_TRAIN = (
    "no training was named (medpfl train DATA --model MODEL --out runs/train; then medpfl audit DATA --realism --model "
    "runs/train)"
)


def _models(model: ModelLike, weights: str | Path | None) -> tuple[ModelLike, dict[str, Any], str, str]:
    """Return the model before its training, what gives the trained one, that in words, and why there is none."""
    if isinstance(model, str | Path) and is_checkpoint(model):
        if weights is not None:
            raise InputError("--weights does not go with a training's directory, which holds its own weights")
        model = checkpoint_at(Path(model))
    if isinstance(model, Checkpoint):
        return _of_training(model)
    if weights is not None:
        return model, {"weights": Path(weights)}, "the given weights", ""
    return model, {}, "a trained model", _TRAIN


def _of_training(last: Checkpoint) -> tuple[ModelLike, dict[str, Any], str, str]:
    folder = last.path.parents[1]
    if last.round == 0:
        return last, {}, "a trained model", "this training has no further round"
    if not round_folder(folder, 0).is_dir():
        return last, {}, "an untrained model", "the folder of round 0 is missing"
    return checkpoint_at(folder, 0), {"model": last}, f"the model after round {last.round}", ""


@dataclass(frozen=True)
class _Change:
    """A case to be tested: what it changes in the first one, and why it cannot be tested, if that is known."""

    name: str
    assumption: str
    text: str
    plan: dict[str, Any] = field(default_factory=dict)
    inferred: bool = False
    trained: bool = False
    needs: int = 1
    why: str = ""


def cases_of(meter: Meter, favorable: Scenario) -> Cases:
    """Return the cases after a check of each.

    Args:
        meter: the model and the settings.
        favorable: scenario of the first audit, with its attacks; its defenses are the noises.
    """
    images = favorable.selection.images or 1
    first = Case(FAVORABLE, "none", meter.assumed(favorable), FAVORABLE)
    found = Cases([first], {FAVORABLE: favorable}, [])
    for change in _changes(images, _modes_differ(favorable), meter):
        if change.name == TOGETHER:
            found.cases.extend(_noises(favorable))
        scenario, whys = _checked(change, favorable, meter, images)
        found.left_out.extend(f"{change.text}: {why}" for why in whys)
        if scenario is not None:
            found.cases.append(Case(change.name, change.assumption, change.text, change.name))
            found.scenarios[change.name] = scenario
    return found


def _noises(favorable: Scenario) -> Iterator[Case]:
    for scale, defense in zip(_NOISES, favorable.defenses[1:], strict=True):
        text = f"noise of {100 * scale:g} % on each layer"
        yield Case(f"noise-{100 * scale:g}", "no noise", text, FAVORABLE, repr(defense))


def _changes(images: int, modes: bool, meter: Meter) -> Iterator[_Change]:
    for size in _BATCHES:
        yield _Change(f"batch-{size}", "1 image", f"{size} images in a batch", {"batch_size": size}, needs=2 * size)
    same = "no layer of this model differs between the modes, as batch norm and dropout do"
    yield _Change("train-mode", "eval mode", "train mode", {"mode": "train"}, why="" if modes else same)
    yield _Change("trained", "an untrained model", meter.training, trained=True, why=meter.gap)
    for steps in _STEPS:
        text = f"{steps} local steps over {_LOCAL} images"
        plan = {"algorithm": "FedAvg", "local_images": _LOCAL, "epochs": steps // _LOCAL}
        yield _Change(f"steps-{steps}", "1 local step", text, plan, needs=2 * _LOCAL)
    yield _Change("labels-inferred", "known labels", "inferred labels", inferred=True)
    size = max((size for size in _BATCHES if size <= min(_BATCH, images // 2)), default=1)
    plan = {"algorithm": "FedAvg", "batch_size": size, "epochs": _STEPS[0], "mode": "train"}
    texts = [
        f"{size} images in a batch" if size > 1 else "",
        "train mode" if modes else "",
        "" if meter.gap else meter.training,
        f"{_STEPS[0]} local steps",
    ]
    text = f"{', '.join(filter(None, texts))} and inferred labels"
    yield _Change(TOGETHER, "all", text, plan, inferred=True, trained=not meter.gap)


def _modes_differ(scenario: Scenario) -> bool:
    """Return True if the model computes something else in train mode than in eval mode."""
    network = scenario.network(0)
    shape = scenario.data.shape
    images = torch.rand(2, *shape, generator=generator_of(scenario.run.seed, "modes")).to(scenario.device)
    with torch.no_grad(), torch.random.fork_rng(), explained("the model cannot be run in both modes"):
        return not torch.equal(network.train()(images), network.eval()(images))


def _checked(change: _Change, favorable: Scenario, meter: Meter, images: int) -> tuple[Scenario | None, Sequence[str]]:
    """Return a case's scenario, or ``None`` if it cannot be tested, and why attacks or the whole case are left out."""
    if change.why or images < change.needs:
        few = f"it needs {change.needs} images or more (--images), for two updates"
        return None, [change.why or few]
    made = replace(
        favorable,
        defenses=[NO_DEFENSE],
        threat=ThreatModel() if change.inferred else ThreatModel(("labels",)),
        plan=replace(favorable.plan, **change.plan),
    )
    if change.trained:
        made = replace(made, selection=made.selection.having(draws=1), **meter.trained)
    with phase(f"checking the case: {change.text}"):
        try:
            checked = Feasibility(replace(made, attacks=[]))
            checked.check()
        except InputError as error:
            return None, [_plain(f"{error}")]
        refused = {repr(attack): checked.refusal(attack) for attack in favorable.attacks}
    taken = [attack for attack in favorable.attacks if not refused[repr(attack)]]
    return replace(made, attacks=taken) if taken else None, [_plain(why) for why in refused.values() if why]


def _plain(message: str) -> str:
    """Return a message's first line, without names and paths: it goes into files that may be shared."""
    return told(message, shown=False).partition("\n")[0]
