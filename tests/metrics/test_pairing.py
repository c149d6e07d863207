"""Pairing recovers a batch's order."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpfl.metrics.pairing import pair
from tests.metrics.phantoms import phantom


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 32), seed=st.integers(0, 10_000), level=st.floats(0, 0.05))
def test_a_shuffled_batch_is_paired_again(count, seed, level):
    generator = torch.Generator().manual_seed(seed)
    truths = torch.rand(count, 1, 8, 8, generator=generator)
    order = torch.randperm(count, generator=generator)
    guesses = truths[order] + level * torch.randn(truths.shape, generator=generator)
    found = pair(guesses, truths)
    assert torch.equal(order[found], torch.arange(count))
    assert torch.allclose(guesses[found], truths, atol=0.3)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_no_assignment_is_better(count, seed):
    generator = torch.Generator().manual_seed(seed)
    truths, guesses = torch.rand(2, count, 1, 2, 2, generator=generator)
    found = pair(guesses, truths)
    assert sorted(found.tolist()) == list(range(count))
    best = min((guesses[list(p)] - truths).square().sum().item() for p in itertools.permutations(range(count)))
    assert (guesses[found] - truths).square().sum().item() == pytest.approx(best, rel=1e-5)


def test_the_whole_batch_decides():
    """Greedy pairing would give guess 1 to image 0, and leave guess 0 for image 1."""
    truths = torch.tensor([0.5, 0.6]).view(2, 1, 1, 1)
    guesses = torch.tensor([0.2, 0.55]).view(2, 1, 1, 1)
    assert pair(guesses, truths).tolist() == [0, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_guesses_that_are_not_finite_count_as_black(value):
    truths = torch.cat([phantom(24, 24, seed=s) for s in range(3)])
    truths[1] = 0.01
    guesses = truths[[2, 1, 0]].clone()
    guesses[1] = value
    assert pair(guesses, truths).tolist() == [2, 1, 0]
    assert not guesses[1].isfinite().any()
    assert sorted(pair(torch.full_like(truths, value), truths).tolist()) == [0, 1, 2]


def test_guesses_are_compared_as_they_are_scored():
    truths = torch.tensor([[0.9, 0.5], [0.6, 0.0]]).view(2, 1, 1, 2)
    guesses = torch.tensor([[30.0, 0.0], [0.5, 0.5]]).view(2, 1, 1, 2)  # 30 is white, and not the more so
    assert pair(guesses, truths).tolist() == pair(guesses.clamp(0, 1), truths).tolist() == [1, 0]
