"""Swapped or equal checkpoints are named as such, and the remedy is one that is left to whoever has only these."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medpfl.core.records.origin import CHECKPOINTS, Source
from medpfl.core.types import Weights
from medpfl.recording.client import check_case
from medpfl.recording.contradictions import looked
from medpfl.recording.mean import check_mean
from tests.recording.loops import network
from tests.recording.test_diagnosis import ONE, SEVERAL, Site, after, planned, sent, site

ORDER = "the checkpoints are in the wrong order"
BLIND = {"order": None, "generators": None}


def from_states(own: Site, record=None, **truth):
    record = replace(own.record if record is None else record, source=Source(CHECKPOINTS))
    return own.case(record, truth=replace(own.truth, **truth))


def swapped(own: Site):
    """Return the record of the same two states in the wrong order."""
    new, old = after(own.record), own.record.weights
    weights = Weights({k: new[k] for k in old.parameters}, {k: new[k] for k in old.buffers})
    update = replace(own.record.update, buffers=dict(old.buffers))
    turned = sent(replace(own.record, update=update), lambda t: {k: -v for k, v in t.items()})
    return replace(turned, weights=weights)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("batch", [ONE, SEVERAL], ids=["one step", "several steps"])
def test_swapped_checkpoints_are_named(batch, norm):
    own = site(batch, norm=norm, epochs=2, momentum=0.9)
    check = check_case(from_states(own, swapped(own), **BLIND))
    assert check.verdict == "wrong"
    assert ORDER in str(check.cause)


def test_a_counter_alone_tells_the_order():
    own = site(SEVERAL)
    record = from_states(own, swapped(own)).record
    assert ORDER in str(looked(record).wrong)
    assert "says -3 steps" in str(looked(record).wrong)
    assert "of a later round" in str(looked(replace(record, source=None)).wrong), "nobody took one for the other"


@pytest.mark.parametrize("wrong", ["first", "second", "neither"])
def test_counters_alone_do_not_say_that_both_checkpoints_are_of_one_training(wrong):
    """One state in the wrong place, and the other of another run: to swap them would not help."""
    own = site(SEVERAL, epochs=2, momentum=0.9)
    other = site(SEVERAL, epochs=2, momentum=0.9, seed=4, start=network(seed=9).state_dict())
    record, foreign = swapped(own), swapped(other)
    if wrong == "first":
        record = replace(record, weights=foreign.weights)
    if wrong == "second":
        old = other.record.weights.parameters
        record = sent(record, lambda _: {k: t - record.weights.parameters[k] for k, t in old.items()})
    cause = str(check_case(from_states(own, record, **BLIND)).cause)
    assert cause.startswith(ORDER)
    assert ("or of different trainings (the counter '1.num_batches_tracked' says -6 steps" in cause) is (
        wrong != "neither"
    )
    assert ("as batch norm's counters and replays agree" in cause) is (wrong == "neither")


@pytest.mark.parametrize("changes", [{"learning_rate": 1.0}, {"momentum": 0.9, "learning_rate": 0.5}])
def test_another_mistake_is_not_taken_for_the_order(changes):
    own = site(SEVERAL, norm=False, epochs=2)
    check = check_case(from_states(own, planned(own.record, **changes), **BLIND))
    assert check.verdict == "wrong"
    assert ORDER not in str(check.cause)


@pytest.mark.parametrize("batch", [ONE, SEVERAL], ids=["one step", "several steps"])
def test_an_update_of_zero_is_named(batch):
    own = site(batch, norm=False)
    zero = sent(own.record, lambda t: {k: torch.zeros_like(v) for k, v in t.items()})
    for case in (from_states(own, zero, **BLIND), own.case(zero)):
        check = check_case(case)
        assert check.verdict == "wrong"
        assert "exactly zero" in str(check.cause)
    check = check_mean(own.network, replace(zero, clients=2), replace(own.truth, order=None))
    assert "exactly zero" in str(check.cause)


def test_a_difference_beyond_what_can_be_verified_is_a_sign():
    """A record further from all replays than they are from each other is no proof, but not without a sign."""
    own = site(SEVERAL, norm=False, epochs=3)
    for share, words in ((1.0, "without a sign"), (1.6, "a sign, but no proof")):
        record = sent(own.record, lambda t, share=share: {k: v * share for k, v in t.items()})
        (said,) = check_case(from_states(own, record, **BLIND)).open
        assert words in said


def test_the_remedy_is_one_that_is_left():
    own = site(SEVERAL, norm=False)
    (said,) = check_case(from_states(own, **BLIND)).open
    assert "truth=True" not in said
    assert "one epoch in one batch" in said
    (said,) = check_case(own.case(own.record, truth=replace(own.truth, **BLIND))).open
    assert "record with truth=True" in said
