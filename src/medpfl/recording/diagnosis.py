"""Diagnosis of a wrong record: try likely causes by replaying the training with each, and name the one that fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.records.steps import Step, Steps
from medpfl.core.types import Tensors, Weights
from medpfl.recording.check import DRAWS, Case, Check, Finding, buffer_gaps, contradictions, near, tolerance_of
from medpfl.recording.replay import Replayed, check_replayable, gap

__all__ = ["check_case", "diagnose"]

_FITS = 2e-3
"""Largest relative difference at which a cause explains a record exactly."""
_FACTORS = (10, 0.1, 100, 0.01, 1000, 0.001, 2, 0.5, 5, 0.2, 4, 0.25, 3, 1 / 3, 20, 0.05, 50, 0.02)
_MOMENTA = (0.0, 0.9, 0.5, 0.99, 0.95, 0.8, 0.7, 0.98)
_DECAYS = (0.0, 1e-4, 5e-4, 1e-3, 1e-2, 1e-5, 0.1)
_BUFFERS = 1e-3
_PLAN = "give the plan that the client followed"
_WATCH = (
    "record with truth=True, which keeps the pixels as they enter the model, or give --truth the pixels at the model's "
    "own size"
)


@dataclass(frozen=True)
class _Fit:
    """A cause, and how well it explains a record.

    Attributes:
        finding: the cause.
        difference: relative difference between the record and the nearest replay under this cause.
        spread: largest relative difference between two of its replays.
        offset: relative difference between the record and the mean of its replays.
    """

    finding: Finding
    difference: float
    spread: float = 0.0
    offset: float = 0.0

    @property
    def exact(self) -> bool:
        return not self.spread and self.difference <= _FITS


def check_case(case: Case) -> Check:
    """Return the check of a record with its truth.

    A record is right if a replay gives its parameters and buffers. If the order of the images or dropout's draws are
    unknown, a record is wrong only if it is far outside of what these explain.
    """
    if acting := [*case.record.filters, *([case.record.defense] if case.record.defense else [])]:
        return _changed_after(case, acting)
    tolerance = tolerance_of(case.record)
    if (found := _lengths(case)) is not None:
        return Check("wrong", finding=found)
    try:
        check_replayable(case.steps)
    except InputError as error:
        wrong = next(contradictions(case.record, case.network), None)
        return Check("wrong" if wrong else "unverified", finding=wrong, open=(f"the training: {error}",))
    made = case.replays(draws=DRAWS)
    sent = case.record.update.tensors
    difference = min(gap(sent, one.tensors) for one in made)
    wrong = next(contradictions(case.record, case.network), None)
    if len(made) == 1:
        return _exact(case, made[0], difference, tolerance, wrong)
    return _drawn(case, made, difference, tolerance, wrong)


def _drawn(case: Case, made: Sequence[Replayed], difference: float, tolerance: float, wrong: Finding | None) -> Check:
    """Return the check if replays differ by draws that are unknown."""
    sent, spread = case.record.update.tensors, _spread(made)
    if wrong is not None:
        return Check("wrong", difference, spread, wrong)
    if difference > 3 * spread + tolerance or _turned(sent, made):
        return Check("wrong", difference, spread, diagnose(case, made, difference))
    what = "dropout's draws" if case.draws else "the order of the images"
    open_ = (
        f"not verifiable beyond a relative difference of {spread:.2g}: {what} is unknown, and replays with different "
        f"ones differ by that much (the record: {difference:.2g}). Learning rate, momentum, epochs and weights can be "
        "wrong without a sign. To verify them, record with truth=True",
    )
    return Check("unverified", difference, spread, open=open_)


def _changed_after(case: Case, acting: Sequence[str]) -> Check:
    """Return the check of an update that filters changed after the training, so that no replay gives it."""
    bare = replace(case.record, filters=(), defense=None)
    check = check_case(replace(case, record=bare))
    if check.verdict == "right":
        return check
    said = (
        "" if check.difference is None else f" (relative difference from the replayed training: {check.difference:.2g})"
    )
    open_ = f"not verifiable beyond the training: {'; '.join(acting)} changed the update after it{said}"
    return Check("unverified", check.difference, check.spread, facts=check.facts, open=(open_, *check.open))


def _exact(case: Case, made: Replayed, difference: float, tolerance: float, wrong: Finding | None) -> Check:
    """Return the check if a single replay decides."""
    sent = case.record.update
    gaps = buffer_gaps(sent.buffers or {}, made.buffers)
    worst = max(gaps.values(), default=0.0)
    if not near(case.record, difference, tolerance):
        return Check("wrong", difference, finding=diagnose(case, [made], difference))
    if worst > max(_BUFFERS, tolerance):
        name = max(gaps, key=lambda one: gaps[one])
        return Check("wrong", difference, finding=_buffer_cause(case, made) or wrong or _buffer_differs(name))
    if wrong is not None:
        return Check("wrong", difference, finding=wrong)
    parts = "parameters and buffers" if gaps else "parameters"
    fact = f"the replayed training gives the same {parts}: relative difference {difference:.2g}"
    if difference > tolerance:
        other = _best(case, [made], difference)
        if other is not None and other.exact and other.difference < 0.1 * difference:
            return Check("wrong", difference, finding=other.finding)
        fact += f", more than {tolerance:.1g}, as another device or kernel may round"
    return Check("right", difference, facts=(fact,))


def diagnose(case: Case, made: Sequence[Replayed], difference: float) -> Finding:
    """Return the cause that explains a wrong record best.

    Args:
        case: the record with its truth.
        made: replays under the record's own plan.
        difference: the smallest relative difference between the record and these.
    """
    best = _best(case, made, difference)
    if best is not None:
        return best.finding if best.exact else replace(best.finding, cause=f"probably {best.finding.cause}")
    return _unexplained(case, made, difference)


def _best(case: Case, made: Sequence[Replayed], difference: float) -> _Fit | None:
    """Return the cause that fits: the first that explains the record exactly, or else the one that explains most."""
    likely: list[_Fit] = []
    for fit in _causes(case, made):
        if fit.exact:
            return fit
        if fit.spread and fit.difference <= 2 * fit.spread + _FITS and fit.difference < 0.5 * difference:
            likely.append(fit)
    least = min((fit.offset for fit in likely), default=0.0)
    return next((fit for fit in likely if fit.offset <= 1.3 * least), None)  # the smaller change comes first


def _causes(case: Case, made: Sequence[Replayed]) -> Iterator[_Fit]:
    """Yield the fit of each likely cause, cheap ones first."""
    yield from _of_signs(case, made)
    yield from _of_numbers(case)
    yield from _of_epochs(case)
    yield from _of_modes(case)
    yield from _of_weights(case)
    yield from _of_others(case, made)
    yield from _of_labels(case)
    yield from _of_pixels(case)
    yield from _of_fits(case)


def _of_signs(case: Case, made: Sequence[Replayed]) -> Iterator[_Fit]:
    sent, start = case.record.update.tensors, case.record.weights.parameters
    minus = {k: -t for k, t in sent.items()}
    yield _fit(Finding("the sign is flipped: old minus new weights", "send new minus old weights"), minus, made)
    less = {k: t.double() - start[k].double() for k, t in sent.items()}
    remedy = "record the difference, or use 'medpfl record before after', which forms it"
    yield _fit(Finding("the record holds the new weights in place of their difference", remedy), less, made)
    more = {k: t.double() + start[k].double() for k, t in sent.items()}
    remedy = "give the new weights as 'after', or save the difference as it is"
    yield _fit(Finding("a difference was taken for new weights and subtracted from", remedy), more, made)
    factor = _factor(sent, made[0].tensors)
    if case.record.update.kind == "gradient" and factor < 0:
        cause = f"a weight difference was recorded as a gradient (it is the gradient times {factor:.3g})"
        yield _fit(Finding(cause, "state a FedAvg plan with the learning rate"), _times(sent, 1 / factor), made)
    if case.record.update.kind == "difference" and len(case.steps.steps) == 1 and factor:
        rate = _number(case.steps.steps[0], "lr")
        if rate and abs(factor * rate + 1) < 0.02:
            cause = "the gradient was recorded as a weight difference"
            yield _fit(Finding(cause, "state a FedSGD plan and kind='gradient'"), _times(sent, -rate), made)
    for count in (2, 3, 4, 5, 8, 10):
        cause = f"the update is scaled by 1/{count}, as if a mean over {count} clients were taken of it"
        if math.isclose(factor, 1 / count, rel_tol=1e-2) and len(case.steps.steps) == 1:
            rate = _number(case.steps.steps[0], "lr")
            if not rate:
                yield _fit(Finding(cause, "record what the client sends"), _times(sent, count), made)


def _of_numbers(case: Case) -> Iterator[_Fit]:
    """Yield other values of the optimizer's settings."""
    first, several = case.steps.steps[0], len(case.steps.steps) > 1
    rate, momentum, decay = (_number(first, name) for name in ("lr", "momentum", "weight_decay"))
    if not first.optimizer:
        return
    for factor in _FACTORS:
        cause = f"the learning rate was {rate * factor:g}, not {rate:g} (a factor of {factor:g})"
        yield _changed(case, Finding(cause, _PLAN), lr=rate * factor)
    for other in _MOMENTA if several else ():
        if other != momentum:
            cause = f"the momentum was {other:g}, not {momentum:g}"
            plain = {"nesterov": False} if not other else {}
            yield _changed(case, Finding(cause, _PLAN), momentum=other, **plain)
    if momentum:
        turned = not first.settings.get("nesterov", False)
        cause = f"the momentum was {'' if turned else 'not '}Nesterov's"
        yield _changed(case, Finding(cause, _PLAN), nesterov=turned)
    for other in _DECAYS:
        if other != decay:
            yield _changed(case, Finding(f"the weight decay was {other:g}, not {decay:g}", _PLAN), weight_decay=other)


def _of_epochs(case: Case) -> Iterator[_Fit]:
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
            cause = f"the client trained for {epochs} epochs, not {plan.epochs}"
            yield _tried(case, Finding(cause, _PLAN), case.replays(steps=steps, draws=2 * DRAWS))


def _of_modes(case: Case) -> Iterator[_Fit]:
    first = case.steps.steps[0]
    mode = not (any(first.modes.values()) if first.modes else first.training)
    word = "train" if mode else "eval"
    steps = [replace(s, training=mode, modes=dict.fromkeys(s.modes, mode)) for s in case.steps.steps]
    cause = f"the model was in {word} mode while the client trained"
    yield _tried(case, Finding(cause, f"state mode {word}"), case.replays(steps=steps))


def _of_weights(case: Case) -> Iterator[_Fit]:
    """Yield the fit of other weights before the training: those from which the recorded ones come by this update."""
    start = case.record.weights
    remedy = "record the weights that the client received in this round"
    cause = "the weights before the training are those of the next round"
    moved = {k: t.double() - case.record.update.tensors[k].double() for k, t in start.parameters.items()}
    if case.record.update.kind == "difference":
        like = {k: t.to(start.parameters[k]) for k, t in moved.items()}
        yield _tried(case, Finding(cause, remedy), case.replays(weights=Weights(like, start.buffers)))
    for name, other in case.others.items():
        if _same_names(start.parameters, other.weights.parameters):
            cause = f"the weights before the training are those of another round: those in '{name}' fit"
            yield _tried(case, Finding(cause, remedy), case.replays(weights=other.weights))


def _of_others(case: Case, made: Sequence[Replayed]) -> Iterator[_Fit]:
    """Yield the fit of a mean with another client's update, or of another client's update itself."""
    sent = case.record.update
    for name, other in case.others.items():
        if not _same_names(sent.tensors, other.update.tensors):
            continue
        images, theirs = case.record.images or 1, other.images or 1
        for share in {0.5, images / (images + theirs)}:
            alone = {k: (t - (1 - share) * other.update.tensors[k]) / share for k, t in sent.tensors.items()}
            cause = f"the update is the mean of several clients: that in '{name}' is in it"
            yield _fit(Finding(cause, "record one client's own update before the server averages"), alone, made)


def _of_labels(case: Case) -> Iterator[_Fit]:
    labels = case.truth.labels
    if labels.ndim != 1 or labels.is_floating_point():
        return
    classes = max(int(labels.max()) + 1, len(case.record.classes or ()))
    if not 2 <= classes <= 4:
        return
    for order in list(itertools.permutations(range(classes)))[1:]:
        cause = f"the classes are in another order: labels 0, 1, ... are {', '.join(map(str, order))} for the client"
        turned = torch.tensor(order)[labels]
        yield _tried(case, Finding(cause, "name the classes in the client's order"), case.replays(labels=turned))


def _of_pixels(case: Case) -> Iterator[_Fit]:
    """Yield the fit of pixels in another range."""
    for finding, images in _ranges(case.truth.images):
        yield _tried(case, finding, case.replays(images=images))


def _ranges(x: Tensor) -> Iterator[tuple[Finding, Tensor]]:
    """Yield the images in other ranges that loaders give them."""
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
        remedy = "state how pixels enter the model (pixels=..., or --mean and --std), or record with truth=True"
        yield Finding(cause, remedy), change()


def _of_fits(case: Case) -> Iterator[_Fit]:
    """Yield learning rates and momenta that are fitted, since no usual value explains the record."""
    first = case.steps.steps[0]
    if not first.optimizer or not case.exact:
        return
    rate, momentum = _number(first, "lr"), _number(first, "momentum")
    factor = _least(lambda log: _changed(case, Finding(""), lr=rate * math.exp(log)).difference, -5.0, 5.0)
    found = rate * math.exp(factor)
    yield _changed(case, Finding(f"the learning rate was about {found:.3g}, not {rate:g}", _PLAN), lr=found)
    if len(case.steps.steps) > 1:
        found = _least(lambda value: _changed(case, Finding(""), momentum=value).difference, 0.0, 0.999)
        yield _changed(case, Finding(f"the momentum was about {found:.3g}, not {momentum:g}", _PLAN), momentum=found)


def _unexplained(case: Case, made: Sequence[Replayed], difference: float) -> Finding:
    """Return what can be said if no cause explains a record: slightly different pixels, or several candidates."""
    sent = case.record.update.tensors
    if not any(bool(t.any()) for t in sent.values()):
        return Finding("the update is exactly zero", "record the update that the client sends")
    cosine = max(_cosine(sent, one.tensors) for one in made)
    if case.truth.order is None and difference < 0.1 and cosine > 0.99:
        return Finding(
            f"the pixels of --truth differ slightly from those that entered the model (relative difference "
            f"{difference:.2g}): the images were resized or read by other software",
            _WATCH,
        )
    remedy = "record one client's own update before the server averages, with the weights that it received"
    rest = f"no cause explains all of it: relative difference {difference:.2g}, cosine {cosine:.2f}"
    if case.record.update.kind == "difference" and (moved := _moved(case)) > cosine:
        before, after = (1 - cosine**2) ** 0.5, (1 - moved**2) ** 0.5
        if after < 0.8 * before:
            cause = "probably the weights before the training are those of another round"
            other = "or else the update is the mean of several clients, or the images are others"
            return Finding(f"{cause}, {other} ({rest})", remedy)
    if cosine > 0.2:
        cause = "probably the update is the mean of several clients"
        other = "or else the weights are those of another round, or the images are others"
        return Finding(f"{cause}, {other} ({rest})", remedy)
    return Finding(
        f"no single cause explains it (relative difference {difference:.2g}, cosine {cosine:.2f}): other images, an "
        "undeclared defense, or several mistakes together",
        "check images, labels and plan, state the defense with --defense, or record with truth=True",
    )


def _moved(case: Case) -> float:
    """Return the largest cosine with a replay if the weights are moved back by a multiple of the update.

    The next round's weights are nearer to the right ones when moved so; under a mean of clients, the weights are right.
    """
    start, sent, found = case.record.weights, case.record.update.tensors, []
    for share in (0.25, 0.5, 0.75, 1.0, 1.5):
        weights = Weights({k: t - share * sent[k].to(t) for k, t in start.parameters.items()}, start.buffers)
        found += [_cosine(sent, one.tensors) for one in case.replays(weights=weights)]
    return max(found)


def _turned(sent: Tensors, made: Sequence[Replayed]) -> bool:
    """Return True if a record points against all replays, which agree among themselves."""
    mean = _mean(made)
    return min(_cosine(one.tensors, mean) for one in made) > 0.3 and _cosine(sent, mean) < -0.3


def _lengths(case: Case) -> Finding | None:
    """Return the cause if the truth's order has another length than the plan, by replaying with other epochs."""
    order, total = case.truth.order, case.steps.total
    if order is None or len(order) == total or case.steps.sampling == "poisson" or not case.steps.are_known:
        return None
    said = f"the truth holds the order of {len(order)} images, the record's plan takes {total}"
    try:
        plan = case.record.regular_plan()
    except InputError:
        return Finding(said, _PLAN)
    if len(order) % plan.images == 0:
        epochs = len(order) // plan.images
        return Finding(f"the client trained for {epochs} epochs, not {plan.epochs} ({said})", _PLAN)
    return Finding(said, _PLAN)


def _buffer_cause(case: Case, made: Replayed) -> Finding | None:
    """Return the cause of wrong buffers beside right parameters, which a batch norm may make blind for its input."""
    sent, before = case.record.update.buffers or {}, case.record.weights.buffers
    remedy = "record the buffers' values after the training"
    values = {k: before[k].double() + t.double() for k, t in sent.items() if k in before}
    if max(buffer_gaps(values, made.buffers).values(), default=1.0) < _BUFFERS:
        return Finding("the buffers are differences: added to those before, they are the replay's", remedy)
    if max(buffer_gaps(sent, before).values(), default=1.0) < _BUFFERS:
        return Finding("the buffers are those before the training", remedy)
    for finding, images in _ranges(case.truth.images):
        (other,) = case.replays(images=images)
        gaps = buffer_gaps(sent, other.buffers)
        if gap(case.record.update.tensors, other.tensors) < _FITS and max(gaps.values(), default=1.0) < _BUFFERS:
            return finding
    return None


def _buffer_differs(name: str) -> Finding:
    cause = f"the buffer '{name}' is not the one that the replayed training gives"
    return Finding(cause, "record the buffers' values after the training, with the pixels that entered the model")


# --- small parts


def _changed(case: Case, finding: Finding, **settings: float | bool) -> _Fit:
    """Return the fit of other settings of the optimizer."""
    steps = [replace(step, settings={**step.settings, **settings}) for step in case.steps.steps]
    return _tried(case, finding, case.replays(steps=steps))


def _tried(case: Case, finding: Finding, made: Sequence[Replayed]) -> _Fit:
    return _fit(finding, case.record.update.tensors, made)


def _fit(finding: Finding, sent: Tensors, made: Sequence[Replayed]) -> _Fit:
    difference = min(_finite(gap(sent, one.tensors)) for one in made)
    if len(made) == 1:
        return _Fit(finding, difference)
    return _Fit(finding, difference, _spread(made), _finite(gap(_mean(made), sent)))


def _mean(made: Sequence[Replayed]) -> dict[str, Tensor]:
    return {k: torch.stack([one.tensors[k] for one in made]).mean(0) for k in made[0].tensors}


def _spread(made: Sequence[Replayed]) -> float:
    pairs = itertools.combinations(made, 2)
    return max((_finite(gap(a.tensors, b.tensors)) for a, b in pairs), default=0.0)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _factor(sent: Tensors, other: Tensors) -> float:
    """Return the multiple of `other` that is nearest to `sent`."""
    both = sum(float((sent[k].double() * t.double()).sum()) for k, t in other.items())
    return both / max(sum(float(t.double().square().sum()) for t in other.values()), 1e-60)


def _cosine(sent: Tensors, other: Tensors) -> float:
    size = sum(float(t.double().square().sum()) for t in sent.values()) ** 0.5
    own = sum(float(t.double().square().sum()) for t in other.values()) ** 0.5
    return _factor(sent, other) * own / max(size, 1e-30)


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
    grid = [low + (high - low) * i / 12 for i in range(13)]
    values = [function(x) for x in grid]
    best = values.index(min(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, 12)]
    found: Any = minimize_scalar(function, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return float(found.x)
