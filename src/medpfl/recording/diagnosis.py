"""Diagnosis of a wrong record: try likely causes by replaying the training with each, and name the one that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from medpfl.core.errors import InputError
from medpfl.core.messages import counted
from medpfl.core.types import Weights
from medpfl.recording.causes import PLAN, causes, ranges, swapped
from medpfl.recording.check import Case, Cause, watching
from medpfl.recording.contradictions import looked
from medpfl.recording.fits import FITS, Fit, cosine_of, factor_of
from medpfl.recording.replay import Replayed, buffer_gaps, gap

__all__ = ["BUFFERS", "best", "buffer_cause", "diagnose", "length_cause", "order_cause"]

_BETTER = 0.7
"""Largest share of a record's difference left after swapping its states; in 30 right records, 1.17 or more."""
BUFFERS = 1e-3
"""Relative difference up to which a buffer is that of the replay."""


def diagnose(case: Case, made: Sequence[Replayed], difference: float, known: Cause | None = None) -> Cause:
    """Return the cause that explains a wrong record best.

    Args:
        case: the record with its truth.
        made: replays under the record's own plan.
        difference: the smallest relative difference between the record and these.
        known: a contradiction within the record, which is returned if no cause explains the record.
    """
    fit = best(case, made, difference)
    if fit is not None:
        return fit.cause if fit.exact else replace(fit.cause, text=f"probably {fit.cause.text}")
    return known or _unexplained(case, made, difference)


def best(case: Case, made: Sequence[Replayed], difference: float) -> Fit | None:
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
    cosine = max(cosine_of(sent, one.tensors) for one in made)
    if case.truth.order is None and difference < 0.1 and cosine > 0.99:
        return Cause(
            f"the pixels of --truth differ slightly from those that entered the model (relative difference "
            f"{difference:.2g}): the images were resized or read by other software",
            watching(case.record, "record with truth=True, which keeps the pixels as they enter the model, or ")
            + "give --truth the pixels at the model's own size",
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
        "check that --truth is of this client and round, check labels and plan, state the defense with --defense"
        + watching(case.record, ", or record with truth=True"),
    )


def _buffers_agree(case: Case, made: Replayed) -> bool:
    """Return True if batch norm's statistics are exactly those of the replay, so that the training is the stated one.

    They depend on all images and on all weights before the last step, up to the layer.
    """
    sent, before = case.record.update.buffers or {}, case.record.weights.buffers
    moved = [k for k, t in sent.items() if t.is_floating_point() and k in before and not torch.equal(t, before[k])]
    gaps = buffer_gaps(sent, made.buffers)
    return bool(moved) and max(gaps.values(), default=1.0) <= BUFFERS


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


def length_cause(case: Case) -> Cause | None:
    """Return the cause if the truth's order has another length than the plan."""
    order, total = case.truth.order, case.steps.total
    if order is None or len(order) == total or case.steps.sampling == "poisson" or not case.steps.are_known:
        return None
    said = f"the truth holds the order of {counted(len(order), 'image')}, the record's plan takes {total}"
    try:
        plan = case.record.regular_plan()
    except InputError:
        return Cause(said, PLAN)
    if len(order) % plan.images == 0:
        epochs = len(order) // plan.images
        return Cause(f"the client trained for {counted(epochs, 'epoch')}, not {plan.epochs} ({said})", PLAN)
    return Cause(said, PLAN)


def order_cause(case: Case, difference: float) -> Cause | None:
    """Return the cause if a record fits much better with its two states swapped, although draws are unknown.

    In 60 simulated trainings of 3 to 9 steps, it named 53 of the swapped ones, and no right one.
    """
    fits = (fit for fit in swapped(case) if fit.difference <= min(2 * fit.spread, _BETTER * difference))
    return next((replace(fit.cause, text=f"probably {fit.cause.text}") for fit in fits), None)


def buffer_cause(case: Case, made: Replayed, name: str) -> Cause:
    """Return the cause of wrong buffers beside right parameters, which a batch norm may make blind for its input.

    Args:
        case: the record with its truth.
        made: the replay under the record's own plan.
        name: the buffer that differs most.
    """
    sent, before = case.record.update.buffers or {}, case.record.weights.buffers
    remedy = "record the buffers' values after the training"
    values = {k: before[k].double() + t.double() for k, t in sent.items() if k in before}
    if max(buffer_gaps(values, made.buffers).values(), default=1.0) < BUFFERS:
        return Cause("the buffers are differences: added to those before, they are the replay's", remedy)
    if max(buffer_gaps(sent, before).values(), default=1.0) < BUFFERS:
        return Cause("the buffers are those before the training", remedy)
    for cause, images in ranges(case):
        (other,) = case.replays(images=images)
        gaps = buffer_gaps(sent, other.buffers)
        if gap(case.record.update.tensors, other.tensors) < FITS and max(gaps.values(), default=1.0) < BUFFERS:
            return cause
    cause = f"the buffer '{name}' is not the one that the replayed training gives"
    remedy = "record the buffers' values after the training, with the pixels that entered the model"
    return looked(case.record, case.network).wrong or Cause(cause, remedy)
