"""An audit's three verdicts, and the names of its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "INCONCLUSIVE",
    "LEAKS",
    "MASKED",
    "NO_LEAK",
    "RANDOM_UPDATE",
    "RECORDED",
    "TOLERANCE",
    "UNDEFENDED",
    "of_frontier",
]

LEAKS = "leaks"
NO_LEAK = "no leak found by these attacks"
INCONCLUSIVE = "inconclusive"

TOLERANCE = 0.2
"""Default tolerance: a rate counts as no leak only if it lies below this share of images with 95 % confidence."""

UNDEFENDED = "NoDefense()"
"""Spec of the undefended control."""
RECORDED = "Recorded()"
"""Spec of an update that was recorded elsewhere."""
MASKED = "masked-vector"
"""Control that attacks one client's masked message as if it were that client's update."""
RANDOM_UPDATE = "random-update"
"""Control that attacks random numbers instead of the update."""


def of_frontier(points: Sequence[Mapping[str, Any]], recommendation: Mapping[str, Any]) -> dict[str, str]:
    """Return the verdict on a frontier's recommended setting.

    If it recommends none, return a verdict on every setting: *leaks* stays, and all others become *inconclusive*.

    Args:
        points: the frontier's points, each with its ``defense`` and ``verdict``.
        recommendation: the frontier's recommendation, with its ``state`` and ``defense``.
    """
    found = {point["defense"]: point["verdict"] for point in points if point["defense"] != UNDEFENDED}
    if recommendation["state"] == "recommended":
        return {recommendation["defense"]: found[recommendation["defense"]]}
    shown = {where: verdict if verdict == LEAKS else INCONCLUSIVE for where, verdict in found.items()}
    return shown or {"every setting": INCONCLUSIVE}
