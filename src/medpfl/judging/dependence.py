"""The fate of a leak when assumptions that favor the attack are dropped."""

from __future__ import annotations

from medpfl.core.verdicts import LEAKS
from medpfl.judging.types import READ, Rate, Union

__all__ = ["ENDS", "STAYS", "UNCLEAR", "WEAKER", "fate_of", "rate_by"]

STAYS, WEAKER, ENDS, UNCLEAR = "stays", "weaker", "ends", "unclear"


def fate_of(favorable: Union, other: Union) -> str | None:
    """Return what becomes of the favorable case's leak in another case; ``None`` if the favorable case does not leak.

    - ``stays``: the other case leaks, and no rate is clearly lower.
    - ``weaker``: it leaks, but a rate by which the favorable case leaks is clearly lower.
    - ``ends``: it is not found to leak, and every such rate is clearly lower.
    - ``unclear``: it is not found to leak, but that may be for lack of updates.

    A rate is clearly lower if its 95 % interval lies below that of the favorable case. Updates are the unit of both.

    >>> one = Union(asr=Rate(1.0, 0.9, 1.0), leaks_by=("read",), verdict="leaks")
    >>> fate_of(one, Union(asr=Rate(0.0, 0.0, 0.4))), fate_of(one, Union(asr=Rate(0.0, 0.0, 0.95)))
    ('ends', 'unclear')
    """
    if favorable.verdict != LEAKS:
        return None
    lower = [_clearly_lower(favorable, other, way) for way in favorable.leaks_by]
    if other.verdict == LEAKS:
        return WEAKER if any(lower) else STAYS
    return ENDS if all(lower) else UNCLEAR


def rate_by(union: Union, way: str) -> Rate:
    """Return the rate of images that leak in a way: reconstructed, or re-identified."""
    return union.asr if way == READ else union.identified


def _clearly_lower(favorable: Union, other: Union, way: str) -> bool:
    """Return True if the rate of a way to leak is clearly lower in the other case, see `fate_of`."""
    rate, before = rate_by(other, way), rate_by(favorable, way)
    return rate.high is not None and before.low is not None and rate.high < before.low
