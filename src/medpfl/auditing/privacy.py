"""What differentially private defenses have spent when the adversary has seen what an audit shows it."""

from __future__ import annotations

from collections.abc import Sequence

from medpfl.auditing.acting import at_client, parts_of
from medpfl.auditing.recorded import behind
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.defenses import DPSGD, ClientDP

__all__ = ["ROUNDS", "spent"]

ROUNDS = 1
"""Of a client, that the adversary sees in an audit."""


def spent(defenses: Sequence[Defense], plan: Plan, delta: float) -> dict[str, str]:
    """Epsilon by both accountants, for each defense that promises one, over the rounds that the adversary sees.

    Args:
        defenses: of the audit.
        plan: of the client.
        delta: in (0, 1).

    Returns:
        By spec, a sentence; without the extra ``dp``, what to install. Several private parts stand each for itself.

    Raises:
        InputError: delta out of its range.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta}: it must lie between 0 and 1, and be well below 1 / images")
    found: dict[str, str] = {}
    for defense in defenses:
        lines = [_line(part, plan, delta) for part in parts_of(at_client(behind(defense))) if _private(part)]
        if lines:
            found[repr(defense)] = "; ".join(lines)
    return found


def _private(part: Defense) -> bool:
    return isinstance(part, DPSGD | ClientDP)


def _line(part: Defense, plan: Plan, delta: float) -> str:
    of = "an image" if isinstance(part, DPSGD) else "the client"
    try:
        value = part.spent(plan, ROUNDS, delta) if isinstance(part, DPSGD) else part.spent(ROUNDS, delta)  # type: ignore[attr-defined]
    except InputError as error:
        return f"of {of}: not computed ({error})"
    return f"{value}, of {of}, over {ROUNDS} round under {plan.sampling} sampling"
