"""Rates and their intervals."""

from __future__ import annotations

from scipy import stats

__all__ = ["interval", "mean_interval"]


def interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a rate: exact, never too narrow.

    >>> low, high = interval(0, 24)
    >>> low, round(high, 4)
    (0.0, 0.1425)
    """
    if trials == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def mean_interval(values: list[float], confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Student's interval of a mean; ``None`` where there are fewer than two values."""
    if len(values) < 2:
        return None, None
    mean, error = float(sum(values) / len(values)), float(stats.sem(values))
    half = error * float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1))
    return mean - half, mean + half
