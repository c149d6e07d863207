"""The plan that ``--dry-run`` prints: what is unknown, and the time besides the steps."""

from __future__ import annotations

from medpfl.runs.outlook import Outlook, Step


def test_a_plan_says_what_is_unknown():
    plan = Outlook((Step("a", 1, "images"), Step("b", 1, "images", seconds=3.0)), notes=("a remark",))
    assert plan.seconds is None
    assert plan.lines()[-2:] == ["a remark", "in all: 2 jobs; unknown time; nothing was run or written"]
    assert Outlook.of([("x", plan), ("y", plan)]).notes == ("a remark",)


def test_what_is_loaded_and_checked_takes_time_too():
    timed, done = (Outlook((Step("b", 1, "images", 1, ended, 3.0),), setup=8.0) for ended in (0, 1))
    assert (timed.seconds, done.seconds) == (11.0, 0.0)
    assert Outlook.of([("x", timed), ("y", timed), ("z", done)]).seconds == 24.0, "and so does each run inside a run"
