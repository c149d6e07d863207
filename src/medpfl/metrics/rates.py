"""Rates and means, and their intervals. Values of one cluster may depend on each other, clusters may not."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from scipy import stats

__all__ = ["cluster_interval", "effective_counts", "effective_trials", "interval", "mean_interval"]


def interval(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
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


def cluster_interval(
    hits: Sequence[bool], clusters: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, float]:
    """Clopper-Pearson interval of a rate on the effective number of trials, after Korn and Graubard (1998).

    The number is that of independent trials which would give the rate the variance that it has between
    clusters, corrected for how well so few clusters show it. Where every trial is a cluster of its own, it
    is the plain interval; where no trial or every trial succeeds, each cluster counts once.

    Args:
        hits: one a trial.
        clusters: the cluster of each trial.
        confidence: of the interval.
    """
    if not hits:
        return 0.0, 1.0
    return interval(*effective_counts(hits, clusters, confidence), confidence)


def effective_counts(
    hits: Sequence[bool], clusters: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, float]:
    """Return the successes and the trials that `cluster_interval` takes.

    They are the counts themselves where no outcome depends on another.
    """
    trials, successes = effective_trials(hits, clusters, confidence), sum(hits)
    return (trials if successes == len(hits) else successes * (trials / len(hits))), trials


def effective_trials(hits: Sequence[bool], clusters: Sequence[Hashable], confidence: float = 0.95) -> float:
    """Return the number of independent trials that `cluster_interval` takes; at most one for each hit or miss."""
    count, groups = len(hits), len(set(clusters))
    rate = sum(hits) / count
    if groups in (1, count) or rate in (0, 1):
        return groups
    variance = _variance([float(hit) for hit in hits], clusters)
    if variance == 0:
        return count
    tail = 0.5 + confidence / 2
    known = float(stats.t.ppf(tail, count - 1) / stats.t.ppf(tail, groups - 1)) ** 2
    return min(count, known * rate * (1 - rate) / variance)


def _variance(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Of the mean of all values, from the sums of the clusters' deviations; at least two clusters."""
    mean, sums = sum(values) / len(values), dict.fromkeys(clusters, 0.0)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    return len(sums) / (len(sums) - 1) * sum(total**2 for total in sums.values()) / len(values) ** 2


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, clusters: Sequence[Hashable] | None = None
) -> tuple[float | None, float | None]:
    """Student's interval of a mean; ``None`` where there are fewer than two values, or than two clusters of them."""
    clusters = range(len(values)) if clusters is None else clusters
    groups = len(set(clusters))
    if groups < 2:
        return None, None
    mean = sum(values) / len(values)
    half = _variance(values, clusters) ** 0.5 * float(stats.t.ppf(0.5 + confidence / 2, groups - 1))
    return mean - half, mean + half
