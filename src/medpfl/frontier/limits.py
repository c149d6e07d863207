"""How much leakage a person is ready to bear, such as ``asr<=0.05``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medpfl.core.errors import InputError, nearest

__all__ = ["METRICS", "Limit", "check_within_reach", "limits_of"]

METRICS = ("asr", "ssim", "identified")
"""What a limit may be on; a rate of images, but for the mean SSIM."""
_RATES = ("asr", "identified")


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


def limits_of(texts: Sequence[str]) -> list[Limit]:
    """Limits from ``"asr<=0.05"``.

    Raises:
        InputError: something else, an unknown metric, a bound out of [0, 1), or one metric twice.
    """
    limits = [_limit(text) for text in texts]
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


def check_within_reach(limits: Sequence[Limit], images: int, per_update: int) -> None:
    """Raises `InputError` for a limit that so few images cannot show, even if not one of them is read.

    Args:
        limits: of which the upper ends of 95 % intervals must be.
        images: that are attacked.
        per_update: images of one update, which are one trial of the interval.
    """
    from medpfl.metrics.rates import interval  # not above: a wrong limit is said before torch is imported

    for limit in limits:
        if limit.metric not in _RATES:
            continue
        end = interval(0, images // per_update)[1]
        if end > limit.bound:
            need = "no number of images can" if limit.bound == 0 else f"--images {_needed(limit.bound) * per_update}"
            raise InputError(
                f"--limit '{limit}' cannot be shown by {images} images: even if none is read, the 95 % interval ends "
                f"at {end:.2g}; {need}{'' if limit.bound == 0 else ' can show it'}"
            )


def _needed(bound: float) -> int:
    """The least number of trials without success whose interval ends at the bound or below."""
    return math.ceil(math.log(0.025) / math.log1p(-bound))
