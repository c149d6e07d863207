"""Iterates are kept at the requested steps, and tracing changes nothing else."""

from __future__ import annotations

import pytest
import torch

from medpfl.attacks import GradientMatching, GradInv, iDLG
from medpfl.attacks.optimize.coordinates import Pixels
from medpfl.attacks.optimize.optimizer import SignedAdam
from medpfl.core.plan import Plan
from medpfl.core.trace import tracing
from tests.attacks.scenes import scene, smooth, tiny

IMAGES, LABELS = smooth(3).view(3, 1, 1, 12, 12), torch.tensor([[0], [2], [1]])


def guessed(attack, most=0):
    seen = scene(tiny(), IMAGES, LABELS, Plan())
    with tracing(most):
        return attack(seen, torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("attack", [iDLG(steps=20), GradInv(steps=23, restarts=2)], ids=repr)
def test_keeping_changes_nothing_and_is_bounded(attack):
    plain, kept = guessed(attack), guessed(attack, 5)
    assert plain.trace is None
    torch.testing.assert_close(kept.guesses, plain.guesses, rtol=0, atol=0)
    starts = 1 if kept.candidates is None else kept.candidates.shape[1]
    assert 5 * starts <= kept.trace.shape[1] <= 6 * starts
    assert kept.trace.shape[2:] == (1, 1, 12, 12)
    assert ((kept.trace >= 0) & (kept.trace <= 1)).all()


def test_every_nth_iterate_is_kept_from_the_first_on():
    attack = GradientMatching(optimizer=SignedAdam(0.01), basis=Pixels(), warmup=(), steps=12)
    whole, part = guessed(attack, 12).trace, guessed(attack, 4).trace
    assert whole.shape[1] == 13
    torch.testing.assert_close(part, whole[:, ::3])
    moved = (whole[:, 1:] - whole[:, :-1]).abs().amax()
    assert 0 < moved < 0.05, "steps of 0.01, one after the other"


@pytest.mark.slow
def test_a_stage_does_not_repeat_where_the_last_one_ended():
    whole = guessed(iDLG(steps=40), 40).trace
    assert whole.shape[1] <= 41
    still = (whole[:, 1:] == whole[:, :-1]).flatten(2).all(2).all(0)
    assert not still[:20].any()


@pytest.mark.slow
def test_a_victim_that_ends_early_stays_where_it_was():
    attack = GradientMatching(optimizer=SignedAdam(0.01, tolerance=1e9), basis=Pixels(), warmup=(), steps=9)
    assert guessed(attack, 9).trace.shape[1] == 1
    trace, seen = guessed(iDLG(steps=400), 40), scene(tiny(), IMAGES, LABELS, Plan())
    assert len(trace.trace) == len(seen)
    assert trace.ended == ("converged",) * 3
    torch.testing.assert_close(trace.trace[:, -1], trace.guesses, rtol=0, atol=0.05)
