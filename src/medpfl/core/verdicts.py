"""The three outcomes of an audit, and the names of its controls."""

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
"""Share of images below which a rate must lie, with 95 % confidence, before it counts as no leak."""

UNDEFENDED = "NoDefense()"
"""The spec of the undefended control."""
RECORDED = "Recorded()"
"""The spec of an update that was made elsewhere."""
MASKED = "masked-vector"
"""The control that attacks one client's masked message as if it were its update."""
RANDOM_UPDATE = "random-update"
"""The control that attacks random numbers in place of the update."""


def of_frontier(points: Sequence[Mapping[str, Any]], recommendation: Mapping[str, Any]) -> dict[str, str]:
    """The verdict on the setting that a frontier recommends; where it recommends none, on all, and never *no leak*."""
    found = {point["defense"]: point["verdict"] for point in points if point["defense"] != UNDEFENDED}
    if recommendation["state"] == "recommended":
        return {recommendation["defense"]: found[recommendation["defense"]]}
    shown = {where: verdict if verdict == LEAKS else INCONCLUSIVE for where, verdict in found.items()}
    return shown or {"every setting": INCONCLUSIVE}
