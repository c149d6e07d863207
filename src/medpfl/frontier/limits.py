"""How much leakage a person is ready to bear, such as ``asr<=0.05``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medpfl.core.errors import InputError, nearest
from medpfl.core.verdicts import TOLERANCE

__all__ = ["METRICS", "Limit", "limits_of", "updates_for"]

METRICS = ("asr", "ssim", "identified", "recognized")
"""What a limit may be on; a rate of images, but for the mean SSIM. ``recognized`` is identified above chance."""
_RATES = ("asr", "identified", "recognized")


@dataclass(frozen=True)
class Limit:
    """A score of the strongest attack, and what it may be at most.

    Attributes:
        metric: of `METRICS`.
        bound: in [0, 1).
    """

    metric: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}<={self.bound:g}"


def limits_of(texts: Sequence[str], tolerance: float = TOLERANCE) -> list[Limit]:
    """Return limits from ``"asr<=0.05"``; without any, the tolerance on images read back and on images recognized.

    Raises:
        InputError: something else, an unknown metric, a bound out of [0, 1), or one metric twice.
    """
    limits = [_limit(text) for text in texts] or [Limit("asr", tolerance), Limit("recognized", tolerance)]
    if len({limit.metric for limit in limits}) < len(limits):
        raise InputError(f"--limit is given twice for one metric: {', '.join(map(str, limits))}")
    return limits


def _limit(text: str) -> Limit:
    found = re.fullmatch(r"\s*(\w+)\s*<=\s*(\S+)\s*", text)
    if found is None:
        raise InputError(f"--limit is '{text}': write a metric and its largest value, such as 'asr<=0.05'")
    metric, bound = found[1].lower(), _number(found[2])
    if metric not in METRICS:
        raise InputError(f"--limit '{text}': there is no metric '{found[1]}' of leakage; {nearest(metric, METRICS)}")
    if bound is None or not 0 <= bound < 1:
        raise InputError(f"--limit '{text}': the value must be a number, at least 0 and less than 1")
    return Limit(metric, bound)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def updates_for(limits: Sequence[Limit]) -> int | None:
    """Return the least number of updates that can show the limits, if nothing is read; ``None`` if no number can."""
    bounds = [limit.bound for limit in limits if limit.metric in _RATES]
    return None if 0 in bounds else max(map(_needed, bounds), default=1)


def _needed(bound: float) -> int:
    """Return the least number of trials without success whose 95 % interval ends at the bound or below."""
    return math.ceil(math.log(0.025) / math.log1p(-bound))
