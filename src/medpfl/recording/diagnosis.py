"""Diagnosis of a wrong record: try likely causes by replaying the training with each, and name the one that fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from medpfl.core.errors import InputError
from medpfl.core.types import Tensors, Weights
from medpfl.recording.causes import PLAN, causes, ranges
from medpfl.recording.check import DRAWS, Case, Cause, Check, acting_in
from medpfl.recording.contradictions import looked
from medpfl.recording.fits import FITS, Fit, cosine_of, factor_of, mean_of, norm_of, spread_of
from medpfl.recording.replay import Replayed, buffer_gaps, check_replayable, gap
from medpfl.recording.rounding import allowance, device_of, doubt, near, tolerance_of

__all__ = ["check_case", "diagnose"]

_BUFFERS = 1e-3
_FARTHER = 4.0
"""Factor by which all replays move the weights further than a record whose plan is wrong. See docs/records.md."""
_WATCH = (
    "record with truth=True, which keeps the pixels as they enter the model, or give --truth the pixels at the model's "
    "own size"
)


def check_case(case: Case) -> Check:
    """Return the check of a record with its truth.

    A record is right if a replay gives its parameters and buffers. If the order of the images or dropout's draws are
    unknown, a record is wrong only if it is far outside of what these explain.
    """
    acting = acting_in(case.record)
    found = _lengths(case)
    if found is not None and not acting:
        return Check("wrong", cause=found)
    try:
        check_replayable(case.steps)
    except InputError as error:
        look = looked(case.record, case.network, case.truth)
        verdict = "wrong" if look.wrong and not acting else "unverified"
        return Check(verdict, cause=look.wrong, facts=look.facts, open=(f"the training: {error}",))
    made = case.replays(draws=DRAWS)
    tolerance = tolerance_of(case.record, made, case.held)
    difference = min(gap(case.record.update.tensors, one.tensors) for one in made)
    if acting:
        return _changed_after(case, made, difference, tolerance)
    if len(made) == 1:
        return _exact(case, made[0], difference, tolerance)
    return _drawn(case, made, difference, tolerance)


def _drawn(case: Case, made: Sequence[Replayed], difference: float, tolerance: float) -> Check:
    """Return the check if replays differ by draws that are unknown."""
    sent, spread, look = case.record.update.tensors, spread_of(made), looked(case.record, case.network, case.truth)
    if look.wrong is not None and look.counted:
        return Check("wrong", difference, spread, look.wrong)
    if far := _is_far(sent, made, tolerance):
        made = [*made, *_unshuffled(case)]  # a client may also take its images in their own order, or class by class
        difference, spread = min(gap(sent, one.tensors) for one in made), spread_of(made)
        far = _is_far(sent, made, tolerance)
    if far or look.wrong is not None:
        return Check("wrong", difference, spread, diagnose(case, made, difference, look.wrong))
    if (short := _short(case, made)) is not None:
        return Check("wrong", difference, spread, short)
    what = "dropout's draws" if case.draws else "the order of the images"
    open_ = (
        f"not verifiable beyond a relative difference of {spread:.2g}: {what} is unknown, and replays with different "
        f"ones differ by that much (the record: {difference:.2g}). Learning rate, momentum, epochs, weights and "
        "images can be wrong without a sign. To verify them, record with truth=True",
    )
    return Check("unverified", difference, spread, facts=look.facts, open=open_)


def _is_far(sent: Tensors, made: Sequence[Replayed], tolerance: float) -> bool:
    """Return True if a record is further from all replays than they are from each other, or points against them."""
    return min(gap(sent, one.tensors) for one in made) > 3 * spread_of(made) + tolerance or _turned(sent, made)


def _short(case: Case, made: Sequence[Replayed]) -> Cause | None:
    """Return the cause if every replay moves the weights much further than the record, whatever the order.

    At a chaotic rate, replays with different orders point anywhere, but all go about equally far. Images in their own
    order, or sorted by class, may go less far than shuffled ones, so these are replayed too.
    """
    length = norm_of(case.record.update.tensors)
    if not min(norm_of(one.tensors) for one in made) > _FARTHER * length:
        return None
    every = [*made, *_unshuffled(case)]
    ratio = min(norm_of(one.tensors) for one in every) / max(length, 1e-30)
    if not _FARTHER < ratio < math.inf:
        return None
    return Cause(
        f"the learning rate, the momentum or the number of epochs was lower than stated: in {len(every)} different "
        f"orders of the images, the stated plan moves the weights at least {ratio:.2g} times as far as the record",
        PLAN,
    )


def _unshuffled(case: Case) -> list[Replayed]:
    """Return replays with the images in their own order, and sorted by class, if the client's order is unknown."""
    truth = case.truth
    if truth.order is not None or case.steps.sampling == "poisson":
        return []
    orders = [torch.arange(len(truth.images))]
    if truth.labels.ndim == 1:
        orders.append(truth.labels.argsort(stable=True))
    epochs = -(-case.steps.total // len(truth.images))
    whole = [order.repeat(epochs)[: case.steps.total] for order in orders]
    return [one for order in whole for one in replace(case, truth=replace(truth, order=order)).replays(draws=1)]


def _changed_after(case: Case, made: Sequence[Replayed], difference: float, tolerance: float) -> Check:
    """Return the check of an update that filters may have changed after the training, so that no replay gives it."""
    same = len(made) == 1 and near(difference, tolerance) and _worst(case, made[0])[0] <= _BUFFERS
    if same and not doubt(case.record, difference, tolerance, 0.0):
        return _right(case, difference, tolerance)
    open_ = (
        f"not verifiable beyond the training: {'; '.join(acting_in(case.record))} changed the update after it "
        f"(relative difference from the replayed training: {difference:.2g})"
    )
    return Check("unverified", difference, spread_of(made), open=(open_,))


def _exact(case: Case, made: Replayed, difference: float, tolerance: float) -> Check:
    """Return the check if a single replay decides."""
    worst, name = _worst(case, made)
    plain = near(difference, tolerance) and worst <= max(_BUFFERS, tolerance)
    same = near(difference, tolerance) and not device_of(case.record)  # a device that rounds as this one
    allowed = 0.0 if plain or same else allowance(case, made)
    nothing = difference > tolerance and not norm_of(case.record.update.tensors)
    if nothing or not near(difference, max(tolerance, allowed)):
        return Check("wrong", difference, cause=diagnose(case, [made], difference))
    if worst > max(_BUFFERS, tolerance, allowed):
        wrong = _buffer_cause(case, made) or looked(case.record, case.network).wrong or _buffer_differs(name)
        return Check("wrong", difference, cause=wrong)
    if difference > tolerance:
        other = _best(case, [made], difference)
        if other is not None and other.exact and other.difference < 0.1 * difference:
            return Check("wrong", difference, cause=other.cause)
    if open_ := doubt(case.record, difference, tolerance, allowed):
        look = looked(case.record, case.network, case.truth)
        verdict = "wrong" if look.wrong else "unverified"
        return Check(verdict, difference, cause=look.wrong, facts=look.facts, open=(open_,))
    return _right(case, difference, tolerance)


def _right(case: Case, difference: float, tolerance: float) -> Check:
    parts = "parameters and buffers" if case.record.update.buffers else "parameters"
    fact = f"the replayed training gives the same {parts}: relative difference {difference:.2g}"
    if difference > tolerance:
        fact += f", more than {tolerance:.1g}, as another device or kernel may round"
    return Check("right", difference, facts=(fact,))


def _worst(case: Case, made: Replayed) -> tuple[float, str]:
    """Return the largest relative difference of a sent buffer from the replay's, and the buffer's name."""
    gaps = buffer_gaps(case.record.update.buffers or {}, made.buffers)
    return max(((gap_, name) for name, gap_ in gaps.items()), default=(0.0, ""))


def diagnose(case: Case, made: Sequence[Replayed], difference: float, known: Cause | None = None) -> Cause:
    """Return the cause that explains a wrong record best.

    Args:
        case: the record with its truth.
        made: replays under the record's own plan.
        difference: the smallest relative difference between the record and these.
        known: a contradiction within the record, which is returned if no cause explains the record.
    """
    best = _best(case, made, difference)
    if best is not None:
        return best.cause if best.exact else replace(best.cause, text=f"probably {best.cause.text}")
    return known or _unexplained(case, made, difference)


def _best(case: Case, made: Sequence[Replayed], difference: float) -> Fit | None:
    """Return the cause that fits: the first that explains the record exactly, or else the one that explains most."""
    likely: list[Fit] = []
    for fit in causes(case, made):
        if fit.exact:
            return fit
        if fit.spread and fit.difference <= 2 * fit.spread + FITS and fit.difference < 0.5 * difference:
            likely.append(fit)
    least = min((fit.offset for fit in likely), default=0.0)
    return next((fit for fit in likely if fit.offset <= 1.3 * least), None)  # the smaller change comes first


def _unexplained(case: Case, made: Sequence[Replayed], difference: float) -> Cause:
    """Return what can be said if no cause explains a record: slightly different pixels, or several candidates."""
    sent = case.record.update.tensors
    if not any(bool(t.any()) for t in sent.values()):
        return Cause("the update is exactly zero", "record the update that the client sends")
    cosine = max(cosine_of(sent, one.tensors) for one in made)
    if case.truth.order is None and difference < 0.1 and cosine > 0.99:
        return Cause(
            f"the pixels of --truth differ slightly from those that entered the model (relative difference "
            f"{difference:.2g}): the images were resized or read by other software",
            _WATCH,
        )
    remedy = (
        "record one client's own update before the server averages, with the weights that it received, and give "
        "--truth the images of this client and round"
    )
    rest = f"no cause explains all of it: relative difference {difference:.2g}, cosine {cosine:.2f}"
    if len(made) == 1 and _buffers_agree(case, made[0]):
        return _changed_update(case, made[0], rest)
    if case.record.update.kind == "difference" and (moved := _moved(case)) > cosine:
        before, after = (1 - cosine**2) ** 0.5, (1 - moved**2) ** 0.5
        if after < 0.8 * before:
            cause = "probably the weights before the training are those of another round"
            other = "or else the update is the mean of several clients, or the images are others"
            return Cause(f"{cause}, {other} ({rest})", remedy)
    if cosine > 0.2:
        cause = "probably the update is the mean of several clients"
        other = "or else the weights are those of another round, or the images are others"
        share = max((factor_of(sent, one.tensors) for one in made), key=abs)
        held = f"it holds {share:.2g} times the client's own update"
        held += f", as a mean of about {1 / share:.0f} would" if 0 < share < 2 / 3 else ""
        return Cause(f"{cause} ({held}), {other}; {rest}", remedy)
    return Cause(
        f"no single cause explains it (relative difference {difference:.2g}, cosine {cosine:.2f}): other images, an "
        "undeclared defense, or several mistakes together",
        "check that --truth is of this client and round, check labels and plan, state the defense with --defense, or "
        "record with truth=True",
    )


def _buffers_agree(case: Case, made: Replayed) -> bool:
    """Return True if batch norm's statistics are exactly those of the replay, so that the training is the stated one.

    They depend on all images and on all weights before the last step, up to the layer.
    """
    sent, before = case.record.update.buffers or {}, case.record.weights.buffers
    moved = [k for k, t in sent.items() if t.is_floating_point() and k in before and not torch.equal(t, before[k])]
    gaps = buffer_gaps(sent, made.buffers)
    return bool(moved) and max(gaps.values(), default=1.0) <= _BUFFERS


def _changed_update(case: Case, made: Replayed, rest: str) -> Cause:
    """Return the cause if the training is right, but the update is another: it was changed afterwards."""
    share = factor_of(case.record.update.tensors, made.tensors)
    aside = "" if len(case.steps.steps) > 1 else " (layers behind the last batch norm aside)"
    cause = (
        "batch norm's statistics are exactly those of the replay, so that images and weights are right"
        f"{aside}, and the update was changed after the training"
    )
    held = f"it holds {share:.2g} times the client's own update"
    other = (
        f"probably the update is the mean of several clients ({held})"
        if 0.05 < share < 0.95
        else f"a filter or a defense acted ({held})"
    )
    return Cause(
        f"{cause}: {other}; {rest}",
        "record one client's own update before the server averages, and state filters and the defense",
    )


def _moved(case: Case) -> float:
    """Return the largest cosine with a replay if the weights are moved back by a multiple of the update.

    The next round's weights are nearer to the right ones when moved so; under a mean of clients, the weights are right.
    """
    start, sent, found = case.record.weights, case.record.update.tensors, []
    for share in (0.25, 0.5, 0.75, 1.0, 1.5):
        weights = Weights({k: t - share * sent[k].to(t) for k, t in start.parameters.items()}, start.buffers)
        found += [cosine_of(sent, one.tensors) for one in case.replays(weights=weights)]
    return max(found)


def _turned(sent: Tensors, made: Sequence[Replayed]) -> bool:
    """Return True if a record points against all replays, which agree among themselves."""
    mean = mean_of(made)
    return min(cosine_of(one.tensors, mean) for one in made) > 0.4 and cosine_of(sent, mean) < -0.5


def _lengths(case: Case) -> Cause | None:
    """Return the cause if the truth's order has another length than the plan, by replaying with other epochs."""
    order, total = case.truth.order, case.steps.total
    if order is None or len(order) == total or case.steps.sampling == "poisson" or not case.steps.are_known:
        return None
    said = f"the truth holds the order of {len(order)} images, the record's plan takes {total}"
    try:
        plan = case.record.regular_plan()
    except InputError:
        return Cause(said, PLAN)
    if len(order) % plan.images == 0:
        epochs = len(order) // plan.images
        return Cause(f"the client trained for {epochs} epochs, not {plan.epochs} ({said})", PLAN)
    return Cause(said, PLAN)


def _buffer_cause(case: Case, made: Replayed) -> Cause | None:
    """Return the cause of wrong buffers beside right parameters, which a batch norm may make blind for its input."""
    sent, before = case.record.update.buffers or {}, case.record.weights.buffers
    remedy = "record the buffers' values after the training"
    values = {k: before[k].double() + t.double() for k, t in sent.items() if k in before}
    if max(buffer_gaps(values, made.buffers).values(), default=1.0) < _BUFFERS:
        return Cause("the buffers are differences: added to those before, they are the replay's", remedy)
    if max(buffer_gaps(sent, before).values(), default=1.0) < _BUFFERS:
        return Cause("the buffers are those before the training", remedy)
    for cause, images in ranges(case.truth.images):
        (other,) = case.replays(images=images)
        gaps = buffer_gaps(sent, other.buffers)
        if gap(case.record.update.tensors, other.tensors) < FITS and max(gaps.values(), default=1.0) < _BUFFERS:
            return cause
    return None


def _buffer_differs(name: str) -> Cause:
    cause = f"the buffer '{name}' is not the one that the replayed training gives"
    return Cause(cause, "record the buffers' values after the training, with the pixels that entered the model")
