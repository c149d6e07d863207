"""What nothing else beats, and what is recommended under a limit. A failed attack recommends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medpfl.core.verdicts import INCONCLUSIVE, UNDEFENDED
from medpfl.frontier.limits import METRICS, Limit
from medpfl.frontier.points import Point

__all__ = ["marked", "recommendation", "unbeaten"]


def unbeaten(points: Sequence[Point], metric: str) -> list[str]:
    """Defenses of the Pareto set: no other setting leaks as little and is as accurate, and better in one of both.

    Point estimates are compared, not intervals; a setting of which one of both is not known is not in it.
    """
    known = [p for p in points if p[metric] is not None and p["accuracy"] is not None]
    return [p["defense"] for p in known if not any(_beats(other, p, metric) for other in known)]


def _beats(one: Point, other: Point, metric: str) -> bool:
    less, more = other[metric] - one[metric], one["accuracy"] - other["accuracy"]
    return less >= 0 and more >= 0 and (less > 0 or more > 0)


def marked(points: Sequence[Point], limits: Sequence[Limit]) -> list[Point]:
    """The points, each with the metrics by which it is in the Pareto set, and whether it meets all limits."""
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
    """Whether the attacks read more than every limit where there is no defense: else to meet it says nothing."""
    ends = [(point[f"{limit.metric}_control"], limit.bound) for limit in limits]
    return point["control_works"] and all(low is not None and low > bound for low, bound in ends)


def recommendation(points: Sequence[Point], limits: Sequence[Limit]) -> dict[str, Any]:
    """The setting with the least loss of balanced accuracy of those that meet all limits, or why there is none.

    A setting meets a limit if the upper ends of the 95 % intervals of all attacks do, naive and adaptive: of the two
    readings of a limit, the cautious one. Of settings that are equally accurate, the one that leaks less. The
    undefended control must exceed the limit with 95 % confidence, or the attacks cannot tell; a setting whose verdict
    is inconclusive is not recommended.

    Returns:
        ``state``: ``"recommended"``, ``"none"``, ``"control failed"`` or ``"no limit"``; ``limits``; ``defense``;
        ``inconclusive``: settings left out for that.
    """
    found = {"limits": list(map(str, limits)), "defense": None, "inconclusive": []}
    if not limits:
        return {**found, "state": "no limit"}
    defended = [p for p in points if p["defense"] != UNDEFENDED and p["accuracy"] is not None]
    judged = [p for p in defended if _control_works(p, limits)]
    if not any(_control_works(p, limits) for p in defended or points):
        return {**found, "state": "control failed"}
    meeting = [p for p in judged if all(_meets(p, limit) for limit in limits)]
    found["inconclusive"] = [p["defense"] for p in meeting if p["verdict"] == INCONCLUSIVE]
    sure = [p for p in meeting if p["verdict"] != INCONCLUSIVE]
    if not sure:
        return {**found, "state": "none"}
    best = min(sure, key=lambda p: (-p["accuracy"], p[f"{limits[0].metric}_end"]))
    return {**found, "state": "recommended", "defense": best["defense"]}
