"""Limits: their syntax, and that few images cannot support a low one."""

from __future__ import annotations

import pytest

from medpfl import InputError
from medpfl.metrics.rates import interval
from medpfl.tradeoff.limits import Limit, limits_of, updates_for


def test_a_limit_is_a_metric_and_its_largest_value():
    assert limits_of(["asr<=0.05", " SSIM <= 5e-1 "]) == [Limit("asr", 0.05), Limit("ssim", 0.5)]
    assert str(Limit("identified", 0.25)) == "identified<=0.25"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("asr<0.05", "give a metric and its highest value"),
        ("asr", "give a metric and its highest value"),
        ("sim<=0.1", "there is no leakage metric 'sim'; did you mean 'ssim'?"),
        ("psnr<=20", "there is no leakage metric 'psnr'"),
        ("asr<=x", "must be a number, at least 0 and less than 1"),
        ("asr<=1", "must be a number, at least 0 and less than 1"),
        ("asr<=-0.1", "must be a number, at least 0 and less than 1"),
        ("asr<=nan", "must be a number, at least 0 and less than 1"),
    ],
)
def test_what_is_no_limit(text, message):
    with pytest.raises(InputError, match=message):
        limits_of([text])


def test_a_metric_has_one_limit():
    with pytest.raises(InputError, match=r"two values for one metric: asr<=0\.1, asr<=0\.2"):
        limits_of(["asr<=0.1", "asr<=0.2"])


def test_without_a_limit_the_tolerance_is_the_limit():
    assert limits_of([]) == [Limit("asr", 0.2), Limit("recognized", 0.2)]
    assert limits_of([], 0.1) == [Limit("asr", 0.1), Limit("recognized", 0.1)]


@pytest.mark.parametrize("bound", [0.01, 0.05, 0.2, 0.3, 0.6])
def test_the_number_of_updates_that_can_show_a_limit_is_the_least(bound):
    trials = updates_for([Limit("asr", bound)])
    assert trials is not None
    assert interval(0, trials)[1] <= bound < interval(0, trials - 1)[1]
    assert updates_for([Limit("recognized", bound), Limit("asr", 0.9)]) == trials


def test_zero_cannot_be_shown_by_any_number_and_the_mean_ssim_needs_none():
    assert updates_for([Limit("asr", 0.0)]) is None
    assert updates_for([Limit("ssim", 0.0)]) == 1
