"""The Pareto set by brute force, and the recommendation: cautious, and absent if the attacks failed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, UNDEFENDED
from medpfl.tradeoff.choice import marked, recommendation, unbeaten
from medpfl.tradeoff.limits import METRICS, Limit

ASR = [Limit("asr", 0.1)]


def point(defense: str, asr: float | None = 0.0, accuracy: float | None = 0.8, **more: Any) -> dict[str, Any]:
    """Return a point with an interval up to 0.05 above the strongest attack; without a defense, all images leak."""
    leakage: dict[str, Any] = dict.fromkeys(METRICS, asr) | {
        f"{m}_end": None if asr is None else asr + 0.05 for m in METRICS
    }
    control = {f"{m}_control": 0.9 for m in METRICS}
    verdict = {"verdict": NO_LEAK, "control_works": True, "flags": [], "updates_needed": None, "images_per_update": 1}
    verdict["accuracy_low"] = None if accuracy is None else accuracy - 0.1
    return {"defense": defense, "accuracy": accuracy, **leakage, **control, **verdict, **more}


BARE = point(UNDEFENDED, 1.0, 0.9, verdict=LEAKS)
levels = st.one_of(st.none(), st.integers(0, 3).map(lambda n: n / 4))


@pytest.mark.slow
@given(st.lists(st.tuples(levels, levels), min_size=1, max_size=8))
def test_a_setting_is_in_the_set_if_no_other_is_as_good_in_both_and_better_in_one(values):
    points = [point(f"D({i})", asr, accuracy) for i, (asr, accuracy) in enumerate(values)]
    found = unbeaten(points, "asr")
    known = [(i, a, u) for i, (a, u) in enumerate(values) if a is not None and u is not None]
    for i, asr, accuracy in known:
        beaten = any(a <= asr and u >= accuracy and (a, u) != (asr, accuracy) for _, a, u in known)
        assert (f"D({i})" in found) is not beaten
    assert len(found) <= len(known)
    assert bool(found) == bool(known)


def test_marks_are_by_metric_and_limits_are_all_to_be_met():
    near = point("A()", 0.0, 0.7, ssim=0.9, ssim_end=0.95)
    both = marked([BARE, near], [Limit("asr", 0.1), Limit("ssim", 0.5)])
    assert both[0]["unbeaten"] == list(METRICS)
    assert [p["meets"] for p in both] == [False, False]
    assert [p["meets"] for p in marked([BARE, near], ASR)] == [False, True]


def test_the_least_loss_of_accuracy_under_the_limit_wins():
    points = [BARE, point("A()", 0.0, 0.6), point("B()", 0.02, 0.8), point("C()", 0.4, 0.85)]
    assert recommendation(points, ASR) == {
        "state": "recommended", "defense": "B()", "limits": ["asr<=0.1"], "inconclusive": [], "leaking": [],
        "updates_needed": None, "images_needed": None, "chance": 0.5,
    }  # fmt: skip
    tie = [BARE, point("A()", 0.03, 0.8), point("B()", 0.01, 0.8)]
    assert recommendation(tie, ASR)["defense"] == "B()"


def test_the_upper_end_counts_not_the_estimate():
    assert recommendation([BARE, point("A()", 0.06, 0.8)], ASR)["state"] == "none"
    assert recommendation([BARE, point("A()", 0.05, 0.8)], ASR)["state"] == "recommended"
    unknown = point("A()", 0.0, asr_end=None)
    assert recommendation([BARE, unknown], ASR)["state"] == "none"


@pytest.mark.parametrize(
    "control",
    [{"control_works": False}, {"asr_control": 0.1}, {"asr_control": None}],
)
def test_nothing_is_recommended_where_the_control_failed(control):
    points = [{**BARE, **control}, point("A()", **control), point("B()", **control)]
    found = recommendation(points, ASR)
    assert (found["state"], found["defense"]) == ("control failed", None)


def test_of_several_controls_each_setting_has_its_own():
    failed = point("A()", 0.0, 0.85, control_works=False)
    assert recommendation([BARE, failed, point("B()", 0.0, 0.7)], ASR)["defense"] == "B()"
    assert recommendation([BARE, failed], ASR)["state"] == "control failed"


def test_an_inconclusive_setting_is_named_not_recommended():
    found = recommendation([BARE, point("A()", verdict=INCONCLUSIVE), point("B()", 0.5)], ASR)
    assert (found["state"], found["defense"], found["inconclusive"]) == ("none", None, ["A()"])


def test_a_training_that_diverged_is_not_recommended():
    assert recommendation([BARE, point("A()", accuracy=None)], ASR)["state"] == "none"


def test_the_undefended_setting_is_never_recommended():
    assert recommendation([{**BARE, "asr_end": 0.0}, point("A()", 0.5)], ASR)["state"] == "none"


def test_a_setting_whose_own_audit_leaks_is_recommended_on_demand_only():
    points = [BARE, point("A()", 0.0, 0.85, verdict=LEAKS), point("B()", 0.0, 0.7)]
    found = recommendation(points, ASR)
    assert (found["defense"], found["leaking"]) == ("B()", ["A()"])
    assert recommendation(points, ASR, accept_leak=True)["defense"] == "A()"
    alone = recommendation(points[:2], ASR)
    assert (alone["state"], alone["leaking"]) == ("none", ["A()"])


def test_too_few_updates_are_no_choice_and_say_how_many_are_needed():
    few = {"verdict": INCONCLUSIVE, "flags": ["too-few"], "asr_end": 0.6}
    points = [BARE, point("A()", updates_needed=17, **few), point("B()", updates_needed=40, **few)]
    found = recommendation(points, [Limit("asr", 0.2)])
    assert (found["state"], found["defense"], found["updates_needed"]) == ("too few", None, 17)
    assert recommendation(points, ASR)["updates_needed"] == 36, "as many as the limit needs"
    assert recommendation(points, [Limit("asr", 0.0)])["state"] == "none"


def test_the_images_needed_fill_the_updates_needed():
    few = {"verdict": INCONCLUSIVE, "flags": ["too-few"], "asr_end": 0.6}
    summed = point("A()", updates_needed=17, images_per_update=16, **few)
    alone = point("B()", updates_needed=40, images_per_update=4, **few)
    found = recommendation([BARE, summed, alone], [Limit("asr", 0.2)])
    assert (found["updates_needed"], found["images_needed"]) == (40, 160), "fewer images than 17 sums of 16"
    assert recommendation([BARE, summed], ASR)["images_needed"] == 36 * 16


def test_nothing_is_traded_where_nothing_was_learned():
    bare = {**BARE, "accuracy": 0.5, "accuracy_low": 0.49}
    assert recommendation([bare, point("A()")], ASR)["state"] == "nothing learned"
    assert recommendation([bare, point("A()")], ASR, classes=4)["state"] == "recommended"
