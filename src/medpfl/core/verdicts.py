"""The three outcomes of an audit, and the names of its controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "INCONCLUSIVE",
    "LEAKS",
    "MASKED",
    "NO_LEAK",
    "RANDOM_UPDATE",
    "RECORDED",
    "UNDEFENDED",
    "by_defense",
    "of_frontier",
    "together",
]

LEAKS = "leaks"
NO_LEAK = "no leak found by these attacks"
INCONCLUSIVE = "inconclusive"

UNDEFENDED = "NoDefense()"
"""The spec of the undefended control."""
RECORDED = "Recorded()"
"""The spec of an update that was made elsewhere."""
MASKED = "masked-vector"
"""The control that attacks one client's masked message as if it were its update."""
RANDOM_UPDATE = "random-update"
"""The control that attacks random numbers in place of the update."""


def by_defense(summary: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The verdict on each defense, all attacks on it together; on no defense, where none was tested.

    Beside a defense, the undefended model is a control, which has to leak for the test to mean anything.

    Args:
        summary: the cells of an audit; those of an audit of several rounds have a ``round`` each.

    >>> cells = [{"defense": "NoDefense()", "verdict": LEAKS}, {"defense": "QSGD()", "verdict": INCONCLUSIVE}]
    >>> by_defense(cells), by_defense(cells[:1])
    ({'QSGD()': 'inconclusive'}, {'NoDefense()': 'leaks'})
    """
    tested = [cell for cell in summary if cell["defense"] != UNDEFENDED] or summary
    found: dict[str, list[str]] = {}
    for cell in tested:
        where = f"{cell['defense']} in round {cell['round']}" if "round" in cell else cell["defense"]
        found.setdefault(where, []).append(cell["verdict"])
    return {where: together(verdicts) for where, verdicts in found.items()}


def of_frontier(points: Sequence[Mapping[str, Any]], recommendation: Mapping[str, Any]) -> dict[str, str]:
    """The verdict on the setting that a frontier recommends; where it recommends none, on all, and never *no leak*."""
    chosen = [
        p for p in points if recommendation["state"] == "recommended" and p["defense"] == recommendation["defense"]
    ]
    if chosen:
        return by_defense(chosen)
    shown = by_defense([point for point in points if point.get("verdict")])
    return {where: verdict if verdict == LEAKS else INCONCLUSIVE for where, verdict in shown.items()} or {
        "every setting": INCONCLUSIVE
    }


def together(verdicts: Iterable[str | None]) -> str:
    """What several attacks show: a leak if one does, none if one that works finds none.

    >>> together([INCONCLUSIVE, NO_LEAK]), together([])
    ('no leak found by these attacks', 'inconclusive')
    """
    found = set(verdicts)
    return next((one for one in (LEAKS, NO_LEAK) if one in found), INCONCLUSIVE)
