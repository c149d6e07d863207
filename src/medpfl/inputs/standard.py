"""The attack of an audit that names none, and its budget of evaluations."""

from __future__ import annotations

from medpfl.attacks import GradInv, WorstCase
from medpfl.attacks.worst_case import ENOUGH, LEAST, may_explain
from medpfl.core.roles import Attack
from medpfl.core.spec import build

__all__ = ["ENOUGH", "LEAST", "budget_of", "kept", "may_explain", "probe", "standard"]


def standard(evaluations: int = ENOUGH) -> Attack:
    """Return the attack of an audit that names none, with a budget for each victim."""
    return WorstCase(evaluations)


def budget_of(attack: Attack) -> int | None:
    """Return a standard attack's budget; ``None`` for any other attack."""
    return attack.evaluations if isinstance(attack, WorstCase) else None


def kept(specs: object) -> Attack | None:
    """Return the standard attack that a run directory's specs state; ``None`` if they state another, or several."""
    one = specs[0] if isinstance(specs, list) and len(specs) == 1 else None
    if not isinstance(one, str) or not one.startswith(f"{WorstCase.__name__}(") or "|" in one:
        return None
    return build(one, {WorstCase.__name__: WorstCase}, "attack")


def probe(steps: int) -> Attack:
    """Return a search with one evaluation a step, to be timed."""
    return GradInv(steps=steps)
