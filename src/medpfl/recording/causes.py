"""The likely causes of a wrong record, each with its fit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.messages import counted
from medpfl.core.records.steps import Step, Steps
from medpfl.core.types import Tensors, Weights
from medpfl.recording.check import DRAWS, Case, Cause, from_checkpoints, watching
from medpfl.recording.fits import Fit, changed, factor_of, fit_of, tried
from medpfl.recording.replay import Replayed

__all__ = ["PLAN", "SWAPPED", "causes", "ranges", "swapped"]

_FACTORS = (10, 0.1, 100, 0.01, 1000, 0.001, 2, 0.5, 5, 0.2, 4, 0.25, 3, 1 / 3, 20, 0.05, 50, 0.02)
_MOMENTA = (0.0, 0.9, 0.5, 0.99, 0.95, 0.8, 0.7, 0.98)
_DECAYS = (0.0, 1e-4, 5e-4, 1e-3, 1e-2, 1e-5, 0.1)
PLAN = "give the plan that the client followed"
SWAPPED = Cause("the checkpoints are in the wrong order", "give the state before the training first")


def causes(case: Case, made: Sequence[Replayed]) -> Iterator[Fit]:
    """Yield the fit of each likely cause, cheap ones first. One under which torch cannot train is no cause."""
    kinds = (
        swapped(case),
        _of_signs(case, made),
        _of_numbers(case),
        _of_epochs(case),
        _of_modes(case),
        _of_weights(case),
        _of_others(case, made),
        _of_labels(case),
        _of_pixels(case),
        _of_fits(case),
    )
    for kind in kinds:
        with suppress(InputError):
            yield from kind


def swapped(case: Case) -> Iterator[Fit]:
    """Yield the fit of a training from the state after it to the one before: two checkpoints may be swapped."""
    start, sent = case.record.weights, case.record.update
    if not from_checkpoints(case.record):
        return
    after = {k: (t.double() + sent.tensors[k].double()).to(t) for k, t in start.parameters.items()}
    made = case.replays(weights=Weights(after, {**start.buffers, **(sent.buffers or {})}))
    yield fit_of(SWAPPED, _times(sent.tensors, -1), made)


def _of_signs(case: Case, made: Sequence[Replayed]) -> Iterator[Fit]:
    sent, start = case.record.update.tensors, case.record.weights.parameters
    if not from_checkpoints(case.record):
        flipped = Cause("the sign is flipped: old minus new weights", "send new minus old weights")
        yield fit_of(flipped, _times(sent, -1), made)
    less = {k: t.double() - start[k].double() for k, t in sent.items()}
    remedy = "record the difference, or use 'medpfl record before after', which forms it"
    yield fit_of(Cause("the record holds the new weights in place of their difference", remedy), less, made)
    more = {k: t.double() + start[k].double() for k, t in sent.items()}
    remedy = "give the new weights as 'after', or save the difference as it is"
    yield fit_of(Cause("a difference was taken for new weights and subtracted from", remedy), more, made)
    factor = factor_of(sent, made[0].tensors)
    if case.record.update.kind == "gradient" and factor < 0:
        cause = f"a weight difference was recorded as a gradient (it is the gradient times {factor:.3g})"
        yield fit_of(Cause(cause, "state a FedAvg plan with the learning rate"), _times(sent, 1 / factor), made)
    if case.record.update.kind == "difference" and len(case.steps.steps) == 1 and factor:
        rate = _number(case.steps.steps[0], "lr")
        if rate and abs(factor * rate + 1) < 0.02:
            cause = "the gradient was recorded as a weight difference"
            yield fit_of(Cause(cause, "state a FedSGD plan and kind='gradient'"), _times(sent, -rate), made)
    if len(case.steps.steps) != 1 or _number(case.steps.steps[0], "lr"):
        return
    for count in (2, 3, 4, 5, 8, 10):
        if math.isclose(factor, 1 / count, rel_tol=1e-2):
            cause = f"the update is scaled by 1/{count}, as if a mean over {count} clients were taken of it"
            yield fit_of(Cause(cause, "record what the client sends"), _times(sent, count), made)


def _of_numbers(case: Case) -> Iterator[Fit]:
    """Yield other values of the optimizer's settings."""
    first, several = case.steps.steps[0], len(case.steps.steps) > 1
    rate, momentum, decay = (_number(first, name) for name in ("lr", "momentum", "weight_decay"))
    if not first.optimizer:
        return
    for factor in _FACTORS:
        cause = f"the learning rate was {rate * factor:g}, not {rate:g} (a factor of {factor:g})"
        yield changed(case, Cause(cause, PLAN), lr=rate * factor)
    for other in _MOMENTA if several else ():
        if other != momentum:
            cause = f"the momentum was {other:g}, not {momentum:g}"
            plain = {"nesterov": False} if not other else {}
            yield changed(case, Cause(cause, PLAN), momentum=other, **plain)
    if momentum:
        turned = not first.settings.get("nesterov", False)
        cause = f"the momentum was {'' if turned else 'not '}Nesterov's"
        yield changed(case, Cause(cause, PLAN), nesterov=turned)
    for other in _DECAYS:
        if other != decay:
            yield changed(case, Cause(f"the weight decay was {other:g}, not {decay:g}", PLAN), weight_decay=other)


def _of_epochs(case: Case) -> Iterator[Fit]:
    try:
        plan = case.record.regular_plan()
    except InputError:
        return
    if plan.algorithm == "FedSGD":
        return
    for epochs in (plan.epochs + 1, plan.epochs - 1, plan.epochs + 2, 2 * plan.epochs):
        if 1 <= epochs != plan.epochs:
            modes = case.steps.steps[0].modes
            steps = [replace(step, modes=modes) for step in Steps.of(replace(plan, epochs=epochs)).steps]
            cause = f"the client trained for {counted(epochs, 'epoch')}, not {plan.epochs}"
            yield tried(case, Cause(cause, PLAN), case.replays(steps=steps, draws=2 * DRAWS))


def _of_modes(case: Case) -> Iterator[Fit]:
    first = case.steps.steps[0]
    mode = not (any(first.modes.values()) if first.modes else first.training)
    word = "train" if mode else "eval"
    steps = [replace(s, training=mode, modes=dict.fromkeys(s.modes, mode)) for s in case.steps.steps]
    cause = f"the model was in {word} mode while the client trained"
    yield tried(case, Cause(cause, f"state mode {word}"), case.replays(steps=steps))


def _of_weights(case: Case) -> Iterator[Fit]:
    """Yield the fit of other weights before the training: those from which the recorded ones come by this update."""
    start = case.record.weights
    remedy = "record the weights that the client received in this round"
    cause = "the weights before the training are those of the next round"
    moved = {k: t.double() - case.record.update.tensors[k].double() for k, t in start.parameters.items()}
    if case.record.update.kind == "difference":
        like = {k: t.to(start.parameters[k]) for k, t in moved.items()}
        yield tried(case, Cause(cause, remedy), case.replays(weights=Weights(like, start.buffers)))
    for name, other in case.others.items():
        same = _same_names(start.parameters, other.weights.parameters)
        if same and _same_names(start.buffers, other.weights.buffers):
            cause = f"the weights before the training are those of another round: those in '{name}' fit"
            yield tried(case, Cause(cause, remedy), case.replays(weights=other.weights))


def _of_others(case: Case, made: Sequence[Replayed]) -> Iterator[Fit]:
    """Yield the fit of a mean with another client's update, or of another client's update itself."""
    sent = case.record.update
    for name, other in case.others.items():
        if not _same_names(sent.tensors, other.update.tensors):
            continue
        images, theirs = case.record.images or 1, other.images or 1
        for share in {0.5, images / (images + theirs)}:
            alone = {k: (t - (1 - share) * other.update.tensors[k]) / share for k, t in sent.tensors.items()}
            cause = f"the update is the mean of several clients: that in '{name}' is in it"
            yield fit_of(Cause(cause, "record one client's own update before the server averages"), alone, made)


def _of_labels(case: Case) -> Iterator[Fit]:
    labels = case.truth.labels
    if labels.ndim != 1 or labels.is_floating_point():
        return
    classes = max(int(labels.max()) + 1, len(case.record.classes or ()))
    if not 2 <= classes <= 4:
        return
    for order in list(itertools.permutations(range(classes)))[1:]:
        cause = f"the classes are in another order: labels 0, 1, ... are {', '.join(map(str, order))} for the client"
        turned = torch.tensor(order)[labels]
        yield tried(case, Cause(cause, "name the classes in the client's order"), case.replays(labels=turned))


def _of_pixels(case: Case) -> Iterator[Fit]:
    """Yield the fit of pixels in another range."""
    for cause, images in ranges(case):
        yield tried(case, cause, case.replays(images=images))


def ranges(case: Case) -> Iterator[tuple[Cause, Tensor]]:
    """Yield the images in other ranges that loaders give them."""
    x = case.truth.images
    grays = x.shape[1] == 1
    mean, std = ([0.449], [0.226]) if grays else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    view = (1, -1, *[1] * (x.ndim - 2))
    ranges: dict[str, Callable[[], Tensor]] = {
        "0 to 255": lambda: x * 255,
        "-1 to 1, as by Normalize(0.5, 0.5)": lambda: (x - 0.5) / 0.5,
        "0 to 1": lambda: (x - x.min()) / (x.max() - x.min()).clamp(min=1e-12),
        "0 to 1, divided by 255": lambda: x / 255,
        "0 to 1, where these range from -1 to 1": lambda: x * 0.5 + 0.5,
        "mean 0 and deviation 1 of the whole set": lambda: (x - x.mean()) / x.std(),
        "mean 0 and deviation 1 of each image": lambda: (
            (x - _over(x, torch.mean)) / _over(x, torch.std).clamp(min=1e-12)
        ),
    }
    if len(mean) == x.shape[1]:
        ranges["ImageNet's normalization"] = lambda: (x - torch.tensor(mean).view(view)) / torch.tensor(std).view(view)
    for words, change in ranges.items():
        cause = f"the pixels entered the model in another range ({words})"
        remedy = "state how pixels enter the model (pixels=..., or --mean and --std)"
        yield Cause(cause, remedy + watching(case.record, ", or record with truth=True")), change()


def _of_fits(case: Case) -> Iterator[Fit]:
    """Yield learning rates and momenta that are fitted, since no usual value explains the record."""
    first = case.steps.steps[0]
    if not first.optimizer or not case.exact:
        return
    rate, momentum = _number(first, "lr"), _number(first, "momentum")
    factor = _least(lambda log: changed(case, Cause(""), lr=rate * math.exp(log)).difference, -5.0, 5.0)
    found = rate * math.exp(factor)
    yield changed(case, Cause(f"the learning rate was about {found:.3g}, not {rate:g}", PLAN), lr=found)
    if len(case.steps.steps) > 1:
        found = _least(lambda value: changed(case, Cause(""), momentum=value).difference, 0.0, 0.999)
        yield changed(case, Cause(f"the momentum was about {found:.3g}, not {momentum:g}", PLAN), momentum=found)


def _times(tensors: Tensors, factor: float) -> dict[str, Tensor]:
    return {k: t * factor for k, t in tensors.items()}


def _number(step: Step, name: str) -> float:
    value = step.settings.get(name, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def _over(x: Tensor, how: Callable[..., Tensor]) -> Tensor:
    return how(x.flatten(1), dim=1).view(-1, *[1] * (x.ndim - 1))


def _same_names(own: Tensors, other: Tensors) -> bool:
    return own.keys() == other.keys() and all(own[k].shape == t.shape for k, t in other.items())


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function of one number is least, on a grid and then near its best point."""
    from scipy.optimize import minimize_scalar  # slow to import

    grid = [low + (high - low) * i / 12 for i in range(13)]
    values = [function(x) for x in grid]
    best = values.index(min(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, 12)]
    found: Any = minimize_scalar(function, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return float(found.x)
