"""Intervals against scipy's own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medpfl.metrics.rates import interval, mean_interval

LEVELS = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@given(counts=st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), level=LEVELS)
def test_clopper_pearson(counts, level):
    low, high = interval(*counts, level)
    exact = stats.binomtest(*counts).proportion_ci(level, method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-8)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


def test_ends_are_exact_and_95_percent_is_the_default():
    assert interval(0, 10)[0] == 0.0
    assert interval(10, 10)[1] == 1.0
    assert interval(3, 10) == interval(3, 10, 0.95)
    assert interval(0, 10)[1] == pytest.approx(1 - 0.025 ** (1 / 10))
    assert interval(0, 0) == (0.0, 1.0)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=40), LEVELS)
def test_student(values, level):
    mean, error = sum(values) / len(values), float(stats.sem(values))
    low, high = mean_interval(values, level)
    if error == 0:
        assert low == high == pytest.approx(mean)
    else:
        expected = stats.t.interval(level, len(values) - 1, loc=mean, scale=error)
        assert (low, high) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_student_by_hand():
    """Mean 2, standard error 1 / sqrt(3), and 4.303 is in every table of t with two degrees of freedom."""
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)), abs=1e-3)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_values(values):
    assert mean_interval(values) == (None, None)
