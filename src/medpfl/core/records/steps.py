"""The steps of a real local training, of which a `Plan` is the regular case. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import Any

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import CLASSES, IMAGES, NAME, SPEC, STEPS, check_whole, shortened
from medpfl.core.plan import Plan

__all__ = ["SPEED_ONLY", "UNKNOWN", "UNSTATED", "Setting", "Step", "Steps"]

UNKNOWN = "unknown"
"""Optimizer of a step that nobody watched."""
UNSTATED = (
    "nobody watched the training, and no plan was stated when the update was recorded: give plan= to the component "
    "that records it (RecordingGrid of Flower, Recorder of NVIDIA FLARE; docs/federation.md, also for records that "
    "were made without it)"
)
"""Why no audit attacks the record of an unwatched training, and where its plan is stated."""

Setting = float | int | bool | str | None | tuple[float, ...]
"""A setting of an optimizer or a loss: a plain value, or the weights of all classes."""

_MOST_SETTINGS, _MOST_LAYERS = 40, 10_000
_OF_PLAN = {"lr": "learning_rate"} | {n: n for n in ("momentum", "weight_decay", "dampening", "nesterov")}
"""Settings of SGD by the names that a plan gives them."""
SPEED_ONLY = ("foreach", "fused", "capturable", "differentiable")
"""Settings of optimizers in ``torch.optim`` that do not change what a step computes."""


@dataclass(frozen=True)
class Step:
    """One step of an optimizer, or one gradient that is sent.

    Attributes:
        images: number of images behind the gradient, all passes together.
        optimizer: class name in ``torch.optim``; empty if the gradient itself is sent.
        settings: the optimizer's settings by name, such as ``lr``.
        loss: name in ``torch.nn.functional``, or ``dice``; empty if unknown.
        loss_settings: the loss's settings that differ from its defaults.
        training: mode of the model as a whole: True for train.
        modes: mode of every batch norm and dropout layer by name.
        precision: dtype of autocast, such as ``float16``; empty without.
        passes: forward passes behind the gradient; more than one if gradients were accumulated.
        change: change of the gradient between backward pass and step: ``clipped``, ``changed``, or empty.
    """

    images: int
    optimizer: str = "SGD"
    settings: Mapping[str, Setting] = field(default_factory=dict)
    loss: str = "cross_entropy"
    loss_settings: Mapping[str, Setting] = field(default_factory=dict)
    training: bool = True
    modes: Mapping[str, bool] = field(default_factory=dict)
    precision: str = ""
    passes: int = 1
    change: str = ""

    def __post_init__(self) -> None:
        check_whole("a step's number of images", self.images, 0, IMAGES)
        check_whole("a step's number of passes", self.passes, 1, STEPS)
        for name in ("optimizer", "loss", "precision", "change"):
            if not isinstance(value := getattr(self, name), str) or len(value) > NAME:
                raise InputError(f"a step's {name} is {shortened(value)}: it must be a name")
        if not isinstance(self.training, bool):
            raise InputError(f"a step's training is {shortened(self.training)}: it must be true or false")
        for name in ("settings", "loss_settings"):
            object.__setattr__(self, name, _settings(name, getattr(self, name)))
        if not isinstance(self.modes, Mapping) or len(self.modes) > _MOST_LAYERS:
            raise InputError(f"a step's modes are {shortened(self.modes)}: give a mode for each layer")
        for layer, mode in self.modes.items():
            if not isinstance(layer, str) or len(layer) > NAME or not isinstance(mode, bool):
                raise InputError(f"a step's mode of {shortened(layer)} is {shortened(mode)}: it must be true or false")

    def to_dict(self) -> dict[str, Any]:
        """Return the step as a JSON object, without what equals the default."""
        default = Step(0)
        told = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in told.items() if name == "images" or value != getattr(default, name)}


@dataclass(frozen=True)
class Steps:
    """The steps that a client took, in order.

    Attributes:
        steps: the steps.
        sampling: ``shuffle`` or ``poisson``, as in `Plan`.
        images: number of different images behind all steps, if known.
        sends: what the client sends besides the update, as in `Plan`.
    """

    steps: tuple[Step, ...]
    sampling: str = "shuffle"
    images: int | None = None
    sends: tuple[str, ...] = ("num_samples", "buffers")

    def __post_init__(self) -> None:
        if not self.steps:
            raise InputError("a record needs at least one step")
        if len(self.steps) > STEPS:
            raise InputError(f"this record has {len(self.steps)} steps: at most {STEPS} are allowed")
        if self.sampling not in ("shuffle", "poisson"):
            raise InputError(f"sampling is {shortened(self.sampling)}: choose shuffle or poisson")
        if self.images is not None:
            check_whole("images", self.images, 1, IMAGES)

    @classmethod
    def of(cls, plan: Plan, layers: Iterable[str] = ()) -> Steps:
        """Return the steps of a plan, for a model with these batch norm and dropout layers."""
        common = {
            "optimizer": "" if plan.algorithm == "FedSGD" else "SGD",
            "settings": {} if plan.algorithm == "FedSGD" else _sgd(plan),
            "loss": plan.loss,
            "loss_settings": {"label_smoothing": plan.label_smoothing} if plan.label_smoothing else {},
            "training": plan.mode == "train",
            "modes": dict.fromkeys(layers, plan.mode == "train"),
        }
        made: dict[int, Step] = {}
        sizes = [plan.size_of(step) for step in range(plan.steps)]
        steps = tuple(made.setdefault(size, Step(size, **common)) for size in sizes)
        return cls(steps, plan.sampling, plan.images, plan.sends)

    @classmethod
    def unknown(cls, images: int | None) -> Steps:
        """Return one step with an unknown optimizer, for a training that nobody watched; no audit attacks it."""
        return cls((Step(images or 0, optimizer=UNKNOWN, loss=""),), images=images)

    @property
    def are_known(self) -> bool:
        """False if nobody watched the training, so that even the number of steps is unknown."""
        return all(step.optimizer != UNKNOWN for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the steps as a JSON object: equal steps in a row are written once, with their number."""
        runs = [[len(list(same)), step.to_dict()] for step, same in groupby(self.steps)]
        return {"runs": runs, "sampling": self.sampling, "images": self.images, "sends": list(self.sends)}

    @classmethod
    def from_dict(cls, told: Any) -> Steps:
        """Return the steps of a JSON object that another party may have written.

        Raises:
            InputError: a field is missing, unknown, of the wrong type or out of its bounds.
        """
        if not isinstance(told, dict) or not isinstance(told.get("runs"), list):
            raise InputError(f"steps is {shortened(told)}: it must be an object with a list of runs")
        if unknown := set(told) - {"runs", "sampling", "images", "sends"}:
            raise InputError(f"steps has an unknown entry {shortened(min(unknown))}")
        steps: list[Step] = []
        for run in told["runs"]:
            if not isinstance(run, list) or len(run) != 2 or not isinstance(run[1], dict):
                raise InputError(f"a run of steps is {shortened(run)}: it must be a number and a step")
            count, step = run
            check_whole("the number of equal steps", count, 1, STEPS)
            if len(steps) + count > STEPS:
                raise InputError(f"this record has more than {STEPS} steps")
            if unknown := set(step) - {one.name for one in fields(Step)}:
                raise InputError(f"a step has an unknown entry {shortened(min(unknown))}")
            if "images" not in step:
                raise InputError("a step has no number of images")
            steps += [Step(**step)] * count
        sends = told.get("sends", ["num_samples", "buffers"])
        if not isinstance(sends, list) or not all(word in ("num_samples", "buffers") for word in sends):
            raise InputError(f"sends is {shortened(sends)}: give a list with num_samples, buffers, both or none")
        return cls(tuple(steps), told.get("sampling", "shuffle"), told.get("images"), tuple(sends))

    def renamed(self, change: Callable[[str], str]) -> Steps:
        """Return the same steps with the names of layers changed."""
        made: dict[int, Step] = {}

        def own(step: Step) -> Step:
            if id(step) not in made:
                made[id(step)] = replace(step, modes={change(name): mode for name, mode in step.modes.items()})
            return made[id(step)]

        return replace(self, steps=tuple(map(own, self.steps)))

    @property
    def algorithm(self) -> str:
        """``"FedSGD"`` if the gradient itself is sent, else ``"FedAvg"``."""
        return "FedAvg" if self.steps[0].optimizer else "FedSGD"

    @property
    def total(self) -> int:
        """Number of images in all steps, repetitions counted."""
        return sum(step.images for step in self.steps)

    def regular(self, images: int | None = None) -> Plan:
        """Return the plan that these steps follow.

        Args:
            images: number of different images, if the steps do not state it.

        Raises:
            InputError: no plan has these steps, so that an audit cannot attack them; the message says why.
        """
        if reason := self.irregularity():
            raise InputError(f"an audit cannot attack this update: {reason}")
        first = self.steps[0]
        smoothing = {"label_smoothing": first.loss_settings.get("label_smoothing", 0.0)}
        common: dict[str, Any] = {"loss": first.loss, "mode": self._mode(), "sampling": self.sampling, **smoothing}
        common["sends"] = self.sends
        if not first.optimizer:
            local = {"local_images": self.images} if self.sampling == "poisson" else {}
            return Plan("FedSGD", batch_size=first.images, **local, **common)
        common |= {_OF_PLAN[name]: value for name, value in first.settings.items() if name in _OF_PLAN}
        if not common.get("momentum"):
            common.pop("dampening", None)  # torch dampens momentum only
        batch, local, epochs = self._epochs(self.images or images)
        return Plan("FedAvg", batch, local, epochs, **common)

    def irregularity(self) -> str:
        """Return why no plan has these steps, or an empty text."""
        first = self.steps[0]
        for step in {id(one): one for one in self.steps}.values():
            if reason := _irregular(step):
                return reason
            for name, word in _COMMON.items():
                if getattr(step, name) != getattr(first, name):
                    return f"{word} changes between steps"
        if not first.optimizer and len(self.steps) > 1:
            return f"one gradient is sent, but the record states {len(self.steps)} steps"
        try:
            self._epochs(self.images)
        except InputError as error:
            return str(error)
        return ""

    def _mode(self) -> str:
        modes = set(self.steps[0].modes.values()) or {self.steps[0].training}
        return "train" if modes == {True} else "eval"

    def _epochs(self, images: int | None) -> tuple[int, int, int]:
        """Return batch size, number of different images and epochs; the latter two are a guess if `images` is unknown.

        Raises:
            InputError: the sizes of the batches are not those of whole epochs.
        """
        sizes = [step.images for step in self.steps]
        if self.sampling == "poisson":
            return self._poisson_epochs(sizes, images or sizes[0])
        for length in [_length(sizes, images)] if images else range(len(sizes), 0, -1):
            whole = length and len(sizes) % length == 0 and sizes == sizes[:length] * (len(sizes) // length)
            if whole and _even(sizes[:length]):
                return sizes[0], sum(sizes[:length]), len(sizes) // length
        among = f" of {images} images" if images else ""
        raise InputError(
            f"batches of {shortened(sizes)} images are no whole epochs{among}: equal batches, the last one of an epoch "
            "not larger"
        )

    def _poisson_epochs(self, sizes: list[int], images: int) -> tuple[int, int, int]:
        """Return the same under Poisson sampling, where each step states its expected number of images."""
        batch, total = sizes[0], sum(sizes)
        if len(set(sizes)) > 1:
            raise InputError(
                f"steps under Poisson sampling take {shortened(sizes)} images: state the same expected number for each"
            )
        one = self.algorithm == "FedSGD"
        if images % batch or (total % images and not one):
            raise InputError(
                f"{len(sizes)} steps with {batch} of {images} images are no whole epochs under Poisson sampling: state "
                "a multiple of the images in a step, and the steps of whole epochs"
            )
        return batch, images, 1 if one else total // images


_COMMON = {
    "optimizer": "the optimizer",
    "settings": "a setting of the optimizer, such as the learning rate,",
    "loss": "the loss",
    "loss_settings": "a setting of the loss",
    "training": "the model's mode (train or eval)",
    "modes": "a layer's mode (train or eval)",
}


def _irregular(step: Step) -> str:
    """Return why no plan has such a step, or an empty text."""
    return next(_reasons(step), "")


def _reasons(step: Step) -> Iterator[str]:
    if step.optimizer == UNKNOWN:
        yield UNSTATED
    if step.optimizer not in ("", "SGD"):
        yield f"the optimizer is {step.optimizer}; local_update knows SGD only"
    if step.precision:
        yield f"the forward pass ran under autocast in {step.precision}; local_update computes in the weights' dtype"
    if step.passes > 1:
        yield f"a step accumulates the gradients of {step.passes} passes"
    if step.change:
        yield f"the gradient was {step.change} between backward pass and step (by clipping, noise or a scaler)"
    if not step.images:
        yield "a step has no image"
    if not step.loss:
        yield "the loss is unknown: it is neither torch.nn.functional.cross_entropy nor a loss that calls it"
    if step.loss not in ("cross_entropy", "dice"):
        yield f"the loss is {step.loss}; local_update knows cross_entropy and dice"
    for name in sorted(set(step.loss_settings) - {"label_smoothing"}):
        yield f"the loss has the setting {name}={shortened(step.loss_settings[name])}, which no plan has"
    if len(set(step.modes.values())) > 1:
        frozen = next(name for name, mode in step.modes.items() if not mode)
        yield f"layers have mixed modes: {frozen!r} is in eval mode, others are in train mode"
    for name, value in step.settings.items() if step.optimizer else ():
        if name not in (*_OF_PLAN, *SPEED_ONLY) and value:
            yield f"the optimizer has the setting {name}={shortened(value)}, which no plan has"


def _sgd(plan: Plan) -> dict[str, Setting]:
    return {
        "lr": plan.learning_rate,
        "momentum": plan.momentum,
        "dampening": plan.dampening,
        "weight_decay": plan.weight_decay,
        "nesterov": plan.nesterov,
    }


def _length(sizes: Sequence[int], images: int) -> int:
    """Return the number of batches that hold exactly `images` images; 0 if none does."""
    total = 0
    for length, size in enumerate(sizes, 1):
        total += size
        if total >= images:
            return length if total == images else 0
    return 0


def _even(sizes: Sequence[int]) -> bool:
    return set(sizes[:-1]) <= {sizes[0]} and 0 < sizes[-1] <= sizes[0]


def _settings(what: str, told: Any) -> dict[str, Setting]:
    if not isinstance(told, Mapping) or len(told) > _MOST_SETTINGS:
        raise InputError(f"a step's {what} are {shortened(told)}: they must be an object with few entries")
    return {_name(what, name): _value(str(name), value) for name, value in told.items()}


def _name(what: str, name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier() or len(name) > NAME:
        raise InputError(f"a step's {what} have an entry {shortened(name)}: it must be a name")
    return name


def _value(name: str, value: Any) -> Setting:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= SPEC:
        return value
    if isinstance(value, int | float) and abs(value) <= 1e300 and math.isfinite(value):
        return value
    if isinstance(value, list | tuple) and len(value) <= CLASSES:
        numbers = tuple(_value(name, one) for one in value)
        if all(isinstance(one, int | float) for one in numbers):
            return numbers  # type: ignore[return-value]
    raise InputError(f"a step's setting {name} is {shortened(value)}: it must be a finite number, a text or a list")
