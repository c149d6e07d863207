"""The success bound against exact tests, and by Monte Carlo against attacks that are optimal on toy problems."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.privacy.tradeoff import Mechanism
from medpfl.defenses import DPSGD, ClientDP
from medpfl.metrics.rates import interval

DRAWS = 20_000


def identification(noise: float, rate: float, steps: int, among: int, seed: int = 0) -> tuple[float, float]:
    """Return the success of the likelihood-ratio attack that identifies one of `among` equally likely records.

    Records are orthogonal, each as long as the sensitivity. Each step sends (among,) coordinates, all with noise; the
    record's coordinate is 1 if the record was drawn. The record's likelihood is the product of its mixtures.
    """
    random = np.random.default_rng(seed)
    sums = random.normal(0, noise, (DRAWS, steps, among))
    sums[..., 0] += random.random((DRAWS, steps)) < rate
    ratio = np.log1p(rate * np.expm1((sums - 0.5) / noise**2)).sum(1)
    return interval(float((ratio.argmax(1) == 0).sum()), DRAWS)


def opposite(noise: float, rate: float, steps: int, seed: int = 0) -> tuple[float, float]:
    """Return the success for two records, x and -x: the worst pair, twice the sensitivity apart."""
    random = np.random.default_rng(seed)
    sums = random.normal(0, noise, (DRAWS, steps)) + (random.random((DRAWS, steps)) < rate)
    ratio = [np.log1p(rate * np.expm1((sign * sums - 0.5) / noise**2)).sum(1) for sign in (1, -1)]
    return interval(float((ratio[0] > ratio[1]).sum()), DRAWS)


def presence(noise: float, rate: float, steps: int, kappa: float, seed: int = 0) -> tuple[float, float]:
    """Return the likelihood-ratio test's success, if the attack succeeds without the record with probability kappa."""
    random = np.random.default_rng(seed)
    sums = random.normal(0, noise, (2, DRAWS, steps))
    sums[1] += random.random((DRAWS, steps)) < rate
    without, there = np.log1p(rate * np.expm1((sums - 0.5) / noise**2)).sum(2)
    return interval(float((there > np.quantile(without, 1 - kappa)).sum()), DRAWS, 0.9999)


CASES = [(1.0, 1.0, 1), (2.0, 1.0, 4), (0.7, 0.2, 1), (1.0, 0.3, 5), (0.5, 0.05, 20)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kappa", [0.02, 0.3])
def test_the_best_test_for_the_record_reaches_the_bound_and_does_not_pass_it(case, kappa):
    low, high = presence(*case, kappa)
    assert low <= Mechanism(*case).bound(kappa) + 0.01  # the quantile of the null is itself drawn
    assert high >= Mechanism(*case).bound(kappa) - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("among", [2, 10, 40])
def test_naming_one_of_equally_likely_records_keeps_the_bound(case, among):
    seen = Mechanism(*case)
    low, high = identification(*case, among)
    assert low <= seen.bound(1 / among)
    assert high > 1 / among, "the attack is better than chance"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_of_two_opposite_records_the_attack_keeps_the_bound_and_at_rate_1_reaches_it(case):
    low, high = opposite(*case)
    assert low <= Mechanism(*case).bound(0.5)
    if case[1] == 1:  # a test of N(-1) against N(1) at equal errors is that of N(0) against N(1) at level 1/2
        assert low <= Mechanism(*case).bound(0.5) <= high


def test_with_few_records_the_bound_is_nearly_reached():
    for among, share in ((2, 0.9), (10, 0.6)):
        _, high = identification(1.0, 1.0, 1, among)
        assert high > share * Mechanism(1.0).bound(1 / among)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "rate", "steps"), [(2.0, 0.5, 2), (1.0, 0.1, 2), (0.5, 0.8, 2)])
@pytest.mark.parametrize("kappa", [1e-3, 0.0125, 0.1, 0.5, 0.9])
def test_two_sampled_steps_are_the_exact_test_on_a_grid(noise, rate, steps, kappa):
    x = np.linspace(-8 * noise, 1 + 8 * noise, 1501)
    without = norm.pdf(x, 0, noise)
    there = (1 - rate) * without + rate * norm.pdf(x, 1, noise)
    p, q = (np.outer(f, f).ravel() * (x[1] - x[0]) ** steps for f in (there, without))
    order = np.argsort(-p / q)
    exact = np.interp(kappa, np.cumsum(q[order]), np.cumsum(p[order]))
    bound = Mechanism(noise, rate, steps).bound(kappa)
    assert exact * (1 - 1e-4) <= bound <= exact * 1.02


def test_one_direction_is_taken_and_not_the_other():
    """Under sampling, presence is easier to detect than absence: at small kappa the curve for absence is lower."""
    noise, rate, kappa = 0.3, 0.1, 0.01
    x = np.linspace(-6, 8, 200_001)
    without = norm.pdf(x, 0, noise)
    there = (1 - rate) * without + rate * norm.pdf(x, 1, noise)
    order = np.argsort(-without / there)
    cumulated = [np.cumsum(f[order]) * (x[1] - x[0]) for f in (there, without)]
    other = np.interp(kappa, *cumulated)  # power of finding that it is not there
    assert Mechanism(noise, rate).bound(kappa) > 0.09 > 2 * other


def test_the_gaussian_needs_no_extra_and_samples_say_what_to_install(monkeypatch):
    plain = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("dp_accounting"):
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert Mechanism(1.0, 1.0, 4).bound(0.01) == pytest.approx(norm.cdf(norm.ppf(0.01) + 2))
    assert Mechanism(1.0, 0.5).bound(0.01) == pytest.approx(0.005 + 0.5 * norm.cdf(norm.ppf(0.01) + 1))
    with pytest.raises(InputError, match=r"pip install 'medpfl\[dp\]'"):
        Mechanism(1.0, 0.5, 2).bound(0.01)


@given(
    noise=st.floats(0.05, 20), rate=st.floats(0.01, 1), kappas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    steps=st.sampled_from([1, 3]),
)  # fmt: skip
def test_it_grows_is_a_probability_and_is_at_least_guessing(noise, rate, kappas, steps):
    seen = Mechanism(noise, rate if steps == 1 else 1.0, steps)
    low, high = map(seen.bound, sorted(kappas))
    assert 0 <= low <= high + 1e-12
    assert high <= 1 + 1e-12
    assert low >= min(kappas) - 1e-12


@pytest.mark.slow
def test_composed_bounds_lie_between_guessing_and_a_record_that_is_in_all_steps():
    seen = Mechanism(1.0, 0.2, 10)
    for kappa in np.linspace(0, 1, 21):
        assert kappa - 1e-9 <= seen.bound(kappa) <= Mechanism(1.0, 1.0, 10).bound(kappa) + 2e-5
    assert Mechanism(1.0, 0.2, 10, seen.profile).bound(0.1) == seen.bound(0.1)


def test_what_the_adversary_sees_of_a_record():
    poisson = Plan("FedAvg", 2, 8, epochs=3, sampling="poisson")
    assert DPSGD(1.0, 0.7).mechanism(poisson, 2) == Mechanism(0.7, 0.25, 24)
    shuffled = Plan("FedAvg", 2, 8, epochs=3)
    assert DPSGD(1.0, 0.7).mechanism(shuffled, 2) == Mechanism(0.7, 1.0, 6)
    assert ClientDP(1.0, 0.7).mechanism(poisson, 2) == Mechanism(0.7, 1.0, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0.0,), "noise"), ((1.0, 0.0), "rate is 0.0"), ((1.0, 1.5), "rate is 1.5"), ((1.0, 1.0, 0), "steps is 0")],
)
def test_bad_numbers_are_named(arguments, words):
    with pytest.raises(InputError, match=words):
        Mechanism(*arguments)


def test_kappa_is_a_probability_and_too_little_noise_is_not_composed():
    with pytest.raises(InputError, match=r"kappa is 1\.5"):
        Mechanism(1.0).bound(1.5)
    with pytest.raises(InputError, match=r"below 0\.05"):
        Mechanism(0.01, 0.5, 2).bound(0.1)
