"""Limits on leakage, such as ``asr<=0.05``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medpfl.core.errors import InputError, nearest
from medpfl.core.verdicts import TOLERANCE

__all__ = ["METRICS", "Limit", "limits_of", "updates_for"]

METRICS = ("asr", "ssim", "identified", "recognized")
"""Metrics that a limit may restrict: rates of images, except the mean SSIM.

``identified`` is the re-identification rate, ``recognized`` its excess above chance.
"""
_RATES = ("asr", "identified", "recognized")


@dataclass(frozen=True)
class Limit:
    """The highest acceptable value for a leakage metric.

    Attributes:
        metric: one of `METRICS`.
        bound: the highest acceptable value, in [0, 1).
    """

    metric: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}<={self.bound:g}"


def limits_of(texts: Sequence[str], tolerance: float = TOLERANCE) -> list[Limit]:
    """Read limits such as ``"asr<=0.05"``; without any, return `tolerance` for both ``asr`` and ``recognized``.

    Raises:
        InputError: if a text is no limit, a metric is unknown or given twice, or a bound lies outside [0, 1).
    """
    limits = [_limit(text) for text in texts] or [Limit("asr", tolerance), Limit("recognized", tolerance)]
    if len({limit.metric for limit in limits}) < len(limits):
        raise InputError(f"--limit has two values for one metric: {', '.join(map(str, limits))}")
    return limits


def _limit(text: str) -> Limit:
    found = re.fullmatch(r"\s*(\w+)\s*<=\s*(\S+)\s*", text)
    if found is None:
        raise InputError(f"--limit is '{text}': give a metric and its highest value, such as 'asr<=0.05'")
    metric, bound = found[1].lower(), _number(found[2])
    if metric not in METRICS:
        raise InputError(f"--limit '{text}': there is no leakage metric '{found[1]}'; {nearest(metric, METRICS)}")
    if bound is None or not 0 <= bound < 1:
        raise InputError(f"--limit '{text}': the value must be a number, at least 0 and less than 1")
    return Limit(metric, bound)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def updates_for(limits: Sequence[Limit]) -> int | None:
    """Return the minimum number of updates that can prove the limits if no attack succeeds; ``None`` if none can."""
    bounds = [limit.bound for limit in limits if limit.metric in _RATES]
    return None if 0 in bounds else max(map(_needed, bounds), default=1)


def _needed(bound: float) -> int:
    """Return the minimum number of failed trials whose 95 % interval ends at or below the bound."""
    return math.ceil(math.log(0.025) / math.log1p(-bound))
