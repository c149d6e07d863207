"""Rates and means, with confidence intervals. Clusters are independent; values within one may not be."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from scipy.special import betaincinv, stdtrit  # scipy.stats has the same, and takes three times as long to import

__all__ = ["cluster_interval", "effective_counts", "effective_trials", "interval", "mean_interval"]


def interval(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return a rate's Clopper-Pearson interval: exact, never too narrow.

    >>> low, high = interval(0, 24)
    >>> low, round(high, 4)
    (0.0, 0.1425)
    """
    if trials == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return low, high


def cluster_interval(
    hits: Sequence[bool], clusters: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, float]:
    """Return a rate's Clopper-Pearson interval for the effective number of trials, after Korn and Graubard (1998).

    The effective number is the number of independent trials that would give the rate its variance between clusters. It
    is corrected for how imprecisely a few clusters show this variance. If every trial is its own cluster, the result
    is the plain interval; if no trial or every trial succeeds, each cluster counts once.

    Args:
        hits: one outcome per trial.
        clusters: each trial's cluster.
        confidence: the interval's confidence.
    """
    if not hits:
        return 0.0, 1.0
    return interval(*effective_counts(hits, clusters, confidence), confidence)


def effective_counts(
    hits: Sequence[bool], clusters: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, float]:
    """Return the successes and the trials that `cluster_interval` uses.

    They are the plain counts if no outcome depends on another.
    """
    trials, successes = effective_trials(hits, clusters, confidence), sum(hits)
    return (trials if successes == len(hits) else successes * (trials / len(hits))), trials


def effective_trials(hits: Sequence[bool], clusters: Sequence[Hashable], confidence: float = 0.95) -> float:
    """Return the number of independent trials that `cluster_interval` uses, at most the number of outcomes."""
    count, groups = len(hits), len(set(clusters))
    rate = sum(hits) / count
    if groups in (1, count) or rate in (0, 1):
        return groups
    variance = _variance([float(hit) for hit in hits], clusters)
    if variance == 0:
        return count
    tail = 0.5 + confidence / 2
    known = float(stdtrit(count - 1, tail) / stdtrit(groups - 1, tail)) ** 2
    return min(count, known * rate * (1 - rate) / variance)


def _variance(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Return the variance of the mean of all values, from the deviations' sums in at least two clusters."""
    mean, sums = sum(values) / len(values), dict.fromkeys(clusters, 0.0)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    return len(sums) / (len(sums) - 1) * sum(total**2 for total in sums.values()) / len(values) ** 2


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, clusters: Sequence[Hashable] | None = None
) -> tuple[float | None, float | None]:
    """Return a mean's Student interval; ``None`` for both ends if there are fewer than two values or clusters."""
    clusters = range(len(values)) if clusters is None else clusters
    groups = len(set(clusters))
    if groups < 2:
        return None, None
    mean = sum(values) / len(values)
    half = _variance(values, clusters) ** 0.5 * float(stdtrit(groups - 1, 0.5 + confidence / 2))
    return mean - half, mean + half
