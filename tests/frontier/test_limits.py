"""Limits: how they are written, and that few images cannot show a low one."""

from __future__ import annotations

import pytest

from medpfl import InputError
from medpfl.frontier.limits import Limit, check_within_reach, limits_of
from medpfl.metrics.rates import interval


def test_a_limit_is_a_metric_and_its_largest_value():
    assert limits_of(["asr<=0.05", " SSIM <= 5e-1 "]) == [Limit("asr", 0.05), Limit("ssim", 0.5)]
    assert str(Limit("identified", 0.25)) == "identified<=0.25"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("asr<0.05", "write a metric and its largest value"),
        ("asr", "write a metric and its largest value"),
        ("sim<=0.1", "there is no metric 'sim' of leakage; did you mean 'ssim'?"),
        ("psnr<=20", "there is no metric 'psnr'"),
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
    with pytest.raises(InputError, match=r"twice for one metric: asr<=0\.1, asr<=0\.2"):
        limits_of(["asr<=0.1", "asr<=0.2"])


@pytest.mark.parametrize("bound", [0.01, 0.05, 0.3, 0.6])
@pytest.mark.parametrize("per_update", [1, 3])
def test_the_number_of_images_that_can_show_a_limit_is_the_least(bound, per_update):
    with pytest.raises(InputError, match=r"cannot be shown by 3 images.*--images (\d+) can show it") as error:
        check_within_reach([Limit("asr", bound)], 3, 3)
    trials = int(str(error.value).rpartition("--images ")[2].split()[0]) // 3
    assert interval(0, trials)[1] <= bound < interval(0, trials - 1)[1]
    check_within_reach([Limit("asr", bound)], trials * per_update, per_update)
    with pytest.raises(InputError, match="cannot be shown"):
        check_within_reach([Limit("identified", bound)], trials * per_update - 1, per_update)


def test_zero_cannot_be_shown_by_any_number_and_the_mean_ssim_needs_none():
    with pytest.raises(InputError, match=r"no number of images can$"):
        check_within_reach([Limit("asr", 0.0)], 10_000, 1)
    check_within_reach([Limit("ssim", 0.0)], 2, 1)
