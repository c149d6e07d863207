"""The check of one client's record: replay the training, and compare what it gives with the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from medpfl.core.errors import InputError
from medpfl.core.types import Tensors
from medpfl.recording.causes import PLAN, SWAPPED
from medpfl.recording.check import DRAWS, EQUAL, Case, Cause, Check, acting_in, from_checkpoints, is_zero
from medpfl.recording.contradictions import looked
from medpfl.recording.diagnosis import BUFFERS, best, buffer_cause, diagnose, length_cause, order_cause
from medpfl.recording.fits import cosine_of, mean_of, norm_of, spread_of
from medpfl.recording.replay import Replayed, buffer_gaps, check_replayable, gap
from medpfl.recording.rounding import allowance, client_device, doubt, near, tolerance_of

__all__ = ["check_case"]

_APART = 1.4
"""Largest difference of a right record from all replays, divided by their spread, is 1.24 in 30 simulated trainings."""
_FARTHER = 4.0
"""Factor by which all replays move the weights further than a record whose plan is wrong. See docs/records.md."""


def check_case(case: Case) -> Check:
    """Return the check of a record with its truth.

    A record is right if a replay gives its parameters and buffers. If the order of the images or dropout's draws are
    unknown, a record is wrong only if it is far outside of what these explain.
    """
    acting = acting_in(case.record)
    found = length_cause(case)
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
    if is_zero(case.record) and all(map(norm_of, (one.tensors for one in made))):
        return Check("wrong", difference, cause=EQUAL)
    if len(made) == 1:
        return _exact(case, made[0], difference, tolerance)
    return _drawn(case, made, difference, tolerance)


def _drawn(case: Case, made: Sequence[Replayed], difference: float, tolerance: float) -> Check:
    """Return the check if replays differ by draws that are unknown."""
    sent, spread, look = case.record.update.tensors, spread_of(made), looked(case.record, case.network, case.truth)
    if look.wrong is not None and look.counted:
        return Check("wrong", difference, spread, _confirmed(case, difference, look.wrong))
    if far := _is_far(sent, made, tolerance):
        made = [*made, *_unshuffled(case)]  # a client may also take its images in their own order, or class by class
        difference, spread = min(gap(sent, one.tensors) for one in made), spread_of(made)
        far = _is_far(sent, made, tolerance)
    if far or look.wrong is not None:
        return Check("wrong", difference, spread, diagnose(case, made, difference, look.wrong))
    if (other := order_cause(case, difference) or _short(case, made)) is not None:
        return Check("wrong", difference, spread, other)
    return Check("unverified", difference, spread, facts=look.facts, open=(_unknown(case, difference, spread),))


def _confirmed(case: Case, difference: float, wrong: Cause) -> Cause:
    """Return a contradiction of counters; only the order, if a replay from the other state confirms it."""
    order = order_cause(case, difference) if wrong.text.startswith(SWAPPED.text) else None
    return (
        wrong if order is None else replace(SWAPPED, text=f"{SWAPPED.text}, as batch norm's counters and replays agree")
    )


def _unknown(case: Case, difference: float, spread: float) -> str:
    """Return what cannot be verified because draws are unknown, and the remedy that is left to whoever recorded."""
    what = "dropout's draws are" if case.draws else "the order of the images is"
    text = f"not verifiable beyond a relative difference of {spread:.2g}: {what} unknown, and replays with different "
    if difference > _APART * spread:
        text += (
            f"ones differ by at most that much. The record differs by {difference:.2g} even from the nearest: a sign, "
            "but no proof, that something is wrong. Check learning rate, momentum, epochs, weights and images"
        )
    else:
        text += (
            f"ones differ by that much (the record: {difference:.2g}). Learning rate, momentum, epochs, weights and "
            "images can be wrong without a sign"
        )
    if not from_checkpoints(case.record):
        return f"{text}. To verify them, record with truth=True"
    if case.draws:
        return text
    return (
        f"{text}. To verify them, record two checkpoints around a local training of one epoch in one batch, in which "
        "the order does not matter"
    )


def _is_far(sent: Tensors, made: Sequence[Replayed], tolerance: float) -> bool:
    """Return True if a record is further from all replays than they are from each other, or points against them."""
    return min(gap(sent, one.tensors) for one in made) > 3 * spread_of(made) + tolerance or _turned(sent, made)


def _turned(sent: Tensors, made: Sequence[Replayed]) -> bool:
    """Return True if a record points against all replays, which agree among themselves."""
    mean = mean_of(made)
    return min(cosine_of(one.tensors, mean) for one in made) > 0.4 and cosine_of(sent, mean) < -0.5


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
    same = len(made) == 1 and near(difference, tolerance) and _worst(case, made[0])[0] <= BUFFERS
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
    plain = near(difference, tolerance) and worst <= max(BUFFERS, tolerance)
    same = near(difference, tolerance) and not client_device(case.record)  # a device that rounds as this one
    allowed = 0.0 if plain or same else allowance(case, made)
    nothing = difference > tolerance and not norm_of(case.record.update.tensors)
    if nothing or not near(difference, max(tolerance, allowed)):
        return Check("wrong", difference, cause=diagnose(case, [made], difference))
    if worst > max(BUFFERS, tolerance, allowed):
        wrong = buffer_cause(case, made, name)
        return Check("wrong", difference, cause=wrong)
    if difference > tolerance:
        other = best(case, [made], difference)
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
