"""Intervals against scipy's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medpfl.metrics.rates import cluster_interval, interval, mean_interval

LEVELS = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@pytest.mark.slow
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


@pytest.mark.slow
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
    """Mean 2, standard error 1 / sqrt(3), and 4.303 from any t table at two degrees of freedom."""
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)), abs=1e-3)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_values(values):
    assert mean_interval(values) == (None, None)


@pytest.mark.slow
@given(st.lists(st.booleans(), min_size=1, max_size=60), LEVELS)
def test_where_every_trial_is_a_cluster_it_is_clopper_pearson(hits, level):
    assert cluster_interval(hits, range(len(hits)), level) == interval(sum(hits), len(hits), level)


@given(groups=st.integers(1, 30), size=st.integers(1, 9), hit=st.booleans())
def test_where_all_trials_agree_each_cluster_counts_once(groups, size, hit):
    clusters = [i % groups for i in range(groups * size)]
    assert cluster_interval([hit] * len(clusters), clusters) == interval(groups * hit, groups)


GROUPED = st.integers(2, 12).flatmap(
    lambda m: st.integers(2, 6).flatmap(
        lambda k: st.lists(st.lists(st.floats(-9, 9), min_size=k, max_size=k), min_size=m, max_size=m)
    )
)


@pytest.mark.slow
@given(GROUPED, LEVELS)
def test_student_of_equal_clusters_is_student_of_their_means(groups, level):
    values, clusters = [v for g in groups for v in g], [i for i, g in enumerate(groups) for _ in g]
    means = mean_interval([sum(g) / len(g) for g in groups], level)
    assert mean_interval(values, level, clusters) == pytest.approx(means, abs=1e-9)


def test_too_few_clusters():
    assert mean_interval([0.1, 0.2, 0.3], 0.95, [5, 5, 5]) == (None, None)
    assert cluster_interval([True, False, True], [5, 5, 5]) == interval(2 / 3, 1)
    assert cluster_interval([], []) == (0.0, 1.0)


def test_korn_and_graubard_by_hand():
    """Five clusters of four, rates 1, 1/2, 1/2, 0, 0: their mean has variance 0.7 / 20, and p (1 - p) is 0.24."""
    hits = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, *[0] * 8]
    clusters = [i // 4 for i in range(20)]
    effective = 0.24 / (0.7 / 20) * (stats.t.ppf(0.975, 19) / stats.t.ppf(0.975, 4)) ** 2
    low, high = cluster_interval([bool(h) for h in hits], clusters)
    assert (low, high) == pytest.approx(interval(0.4 * effective, effective))
    assert low < interval(8, 20)[0]
    assert high > interval(8, 20)[1]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_it_covers_where_the_plain_interval_does_not(rate):
    """20 images under 4 draws of weights; each image's own rate comes from a beta distribution."""
    random = np.random.default_rng(0)
    clusters, covered = [i // 4 for i in range(80)], {"plain": 0, "clustered": 0}
    for _ in range(400):
        own = random.beta(rate, 1 - rate, 20).repeat(4)
        hits = (random.random(80) < own).tolist()
        for name, (low, high) in {
            "plain": interval(sum(hits), 80), "clustered": cluster_interval(hits, clusters)
        }.items():  # fmt: skip
            covered[name] += low <= rate <= high
    assert covered["plain"] < 0.92 * 400
    assert covered["clustered"] >= 0.94 * 400
