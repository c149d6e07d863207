"""Pareto-optimal settings, and the recommendation under a limit. A failed attack never leads to a recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, UNDEFENDED
from medpfl.tradeoff.limits import METRICS, Limit, updates_for
from medpfl.tradeoff.points import Point

__all__ = ["marked", "no_better_than_guessing", "recommendation", "unbeaten"]


def unbeaten(points: Sequence[Point], metric: str) -> list[str]:
    """Return the Pareto-optimal defenses: no other setting is as good in leakage and accuracy and better in one.

    Point estimates are compared, not intervals. A setting with unknown leakage or accuracy is left out.
    """
    known = [p for p in points if p[metric] is not None and p["accuracy"] is not None]
    return [p["defense"] for p in known if not any(_beats(other, p, metric) for other in known)]


def _beats(one: Point, other: Point, metric: str) -> bool:
    less, more = other[metric] - one[metric], one["accuracy"] - other["accuracy"]
    return less >= 0 and more >= 0 and (less > 0 or more > 0)


def marked(points: Sequence[Point], limits: Sequence[Limit]) -> list[Point]:
    """Return the points with two more entries: the metrics in which each is Pareto-optimal, and if it meets the limits.

    The entries are ``unbeaten`` and ``meets`` (``None`` without limits).
    """
    sets = {metric: unbeaten(points, metric) for metric in METRICS}
    return [
        {
            **p,
            "unbeaten": [metric for metric in METRICS if p["defense"] in sets[metric]],
            "meets": all(_meets(p, limit) for limit in limits) if limits else None,
        }
        for p in points
    ]


def _meets(point: Point, limit: Limit) -> bool:
    end = point[f"{limit.metric}_end"]
    return end is not None and end <= limit.bound


def _control_works(point: Point, limits: Sequence[Limit]) -> bool:
    """Return True if the undefended control leaks and exceeds a limit; otherwise meeting the limits proves nothing."""
    ends = [(point[f"{limit.metric}_control"], limit.bound) for limit in limits]
    return point["control_works"] and any(low is not None and low > bound for low, bound in ends)


def recommendation(
    points: Sequence[Point], limits: Sequence[Limit], classes: int = 2, accept_leak: bool = False
) -> dict[str, Any]:
    """Return the most accurate setting that meets all limits, or the reason for recommending none.

    A setting meets a limit if the upper end of the 95 % interval for all attacks together meets it (the cautious
    reading of a limit). Among equally accurate settings, the one that leaks less wins. The undefended control must
    leak and exceed a limit with 95 % confidence; otherwise these attacks prove nothing. A setting with an
    inconclusive verdict is never recommended, and one that leaks only with `accept_leak`.

    Args:
        points: the settings as points; the first is the undefended one.
        limits: at least one limit.
        classes: number of classes; guessing reaches a balanced accuracy of 1 / `classes`.
        accept_leak: allow a setting that leaks by the verdict of its own audit.

    Returns:
        ``state``: ``"recommended"``, ``"none"``, ``"too few"``, ``"control failed"`` or ``"nothing learned"``;
        ``limits``; ``defense``; ``inconclusive`` and ``leaking``: the settings left out for these reasons;
        ``updates_needed``, ``images_needed``: the number of updates that would decide, and of the images in them, if
        there are too few; ``chance``: the balanced accuracy of guessing.
    """
    found: dict[str, Any] = {
        "limits": list(map(str, limits)), "defense": None, "inconclusive": [], "leaking": [], "updates_needed": None,
        "images_needed": None, "chance": 1 / classes,
    }  # fmt: skip
    low = points[0]["accuracy_low"]
    if no_better_than_guessing(low, classes):
        return {**found, "state": "nothing learned"}
    defended = [p for p in points if p["defense"] != UNDEFENDED and p["accuracy"] is not None]
    if not any(_control_works(p, limits) for p in defended or points):
        return {**found, "state": "control failed"}
    judged = [p for p in defended if _control_works(p, limits)]
    meeting = [p for p in judged if all(_meets(p, limit) for limit in limits)]
    found["inconclusive"] = [p["defense"] for p in meeting if p["verdict"] == INCONCLUSIVE]
    found["leaking"] = [p["defense"] for p in meeting if p["verdict"] == LEAKS and not accept_leak]
    left_out = {*found["inconclusive"], *found["leaking"]}
    sure = [p for p in meeting if p["defense"] not in left_out]
    if sure:
        best = min(sure, key=lambda p: (-p["accuracy"], p[f"{limits[0].metric}_end"]))
        return {**found, "state": "recommended", "defense": best["defense"]}
    needed = _needed(judged, limits)
    if needed is None:
        return {**found, "state": "none"}
    return {**found, "state": "too few", "images_needed": needed[0], "updates_needed": needed[1]}


def no_better_than_guessing(low: float | None, classes: int) -> bool:
    """Return True if the lower end of a balanced accuracy does not exceed that of guessing, 1 / `classes`."""
    return low is not None and low <= 1 / classes


def _needed(points: Sequence[Point], limits: Sequence[Limit]) -> tuple[int, int] | None:
    """Return the fewest images that would decide a setting open for lack of updates, and the updates that hold them."""
    open_ = [p for p in points if p["verdict"] == INCONCLUSIVE and "too-few" in p["flags"]]
    least = updates_for(limits)
    if least is None:
        return None
    known = [p for p in open_ if p["updates_needed"] is not None]
    needs = [(max(least, p["updates_needed"]), p["images_per_update"]) for p in known]
    return min(((updates * images, updates) for updates, images in needs), default=None)
