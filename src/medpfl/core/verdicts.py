"""The three outcomes of an audit, and the names of its controls."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "INCONCLUSIVE",
    "LEAKS",
    "MASKED",
    "NO_LEAK",
    "RANDOM_UPDATE",
    "RECORDED",
    "TOLERANCE",
    "UNDEFENDED",
    "together",
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


def together(verdicts: Iterable[str | None]) -> str:
    """What several attacks show: a leak if one does, none if one that works finds none.

    >>> together([INCONCLUSIVE, NO_LEAK]), together([])
    ('no leak found by these attacks', 'inconclusive')
    """
    found = set(verdicts)
    return next((one for one in (LEAKS, NO_LEAK) if one in found), INCONCLUSIVE)
