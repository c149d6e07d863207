"""The three outcomes of an audit, its thresholds, and the names of its controls."""

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
    "SUCCESS",
    "TOLERANCE",
    "UNDEFENDED",
    "of_frontier",
]

LEAKS = "leaks"
NO_LEAK = "no leak found by these attacks"
INCONCLUSIVE = "inconclusive"

TOLERANCE = 0.2
"""Share of images that a rate must stay below, with 95 % confidence, to count as no leak."""

SUCCESS = 0.9
"""SSIM from which an image counts as reconstructed (Das, Amini and Wu, arXiv:2409.18907)."""

UNDEFENDED = "NoDefense()"
"""The spec of the undefended control."""
RECORDED = "Recorded()"
"""The spec for an update recorded elsewhere."""
MASKED = "masked-vector"
"""The control that attacks one client's masked message as if it were its update."""
RANDOM_UPDATE = "random-update"
"""The control that attacks random numbers instead of the update."""


def of_frontier(points: Sequence[Mapping[str, Any]], recommendation: Mapping[str, Any]) -> dict[str, str]:
    """Return the verdict on a frontier's recommended setting, by defense spec.

    If it recommends none, return the verdicts on all settings, with *inconclusive* in place of *no leak found*.
    """
    found = {point["defense"]: point["verdict"] for point in points if point["defense"] != UNDEFENDED}
    if recommendation["state"] == "recommended":
        return {recommendation["defense"]: found[recommendation["defense"]]}
    shown = {where: verdict if verdict == LEAKS else INCONCLUSIVE for where, verdict in found.items()}
    return shown or {"every setting": INCONCLUSIVE}
