"""False security: an adaptive attack's gain over the naive one, which a test with naive attacks alone would miss."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from medpfl.core.types import Finding
from medpfl.judging.evidence import clusters_of, identified
from medpfl.judging.types import Rate
from medpfl.metrics.rates import cluster_interval, mean_interval

__all__ = ["false_security"]

_SCORES: dict[str, Callable[[Finding], float | None]] = {
    "asr": lambda row: float(row.success),
    "ssim": lambda row: row.scores.get("ssim"),
    "identified": lambda row: None if (told := identified(row)) is None else float(told),
}


def false_security(naive: Sequence[Finding] | None, adaptive: Sequence[Finding]) -> dict[str, Rate]:
    """Return the adaptive attack's rates and mean SSIM minus the naive attack's, on the images that both attacked.

    Args:
        naive: rows for the naive attack; ``None`` if it was not run.
        adaptive: rows for the same attack on the same updates when it knows the defense.

    Returns:
        The gain in ``asr``, ``ssim`` and ``identified``, each with its 95 % interval by cluster. For the SSIM, it is
        Student's interval for the paired differences, without ends if they do not vary. For a rate, it combines the
        97.5 % intervals for the shares won and lost, which is conservative. The gain is unknown if there is nothing to
        compare.
    """
    before = {_place(row): row for row in naive or () if "zero-gradient" not in row.flags}
    pairs = [(before[_place(row)], row) for row in adaptive if _place(row) in before]
    found: dict[str, Rate] = {}
    for name, score in _SCORES.items():
        known = [(score(old), score(new), new) for old, new in pairs]
        gains = [(new - old, row) for old, new, row in known if old is not None and new is not None]
        values, clusters = [gain for gain, _ in gains], clusters_of([row for _, row in gains])
        low, high = (_of_means if name == "ssim" else _of_rates)(values, clusters)
        found[name] = Rate(sum(values) / len(values) if values else None, low, high)
    return found


def _of_means(gains: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float | None, float | None]:
    return mean_interval(gains, clusters=clusters) if len(set(gains)) > 1 else (None, None)


def _of_rates(gains: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float | None, float | None]:
    """Return the interval for gains of 1, 0 or -1, from least won minus most lost to most won minus least lost."""
    if not gains:
        return None, None
    won, lost = (cluster_interval([gain == side for gain in gains], clusters, 0.975) for side in (1, -1))
    return won[0] - lost[1], won[1] - lost[0]


def _place(row: Finding) -> tuple[int, int, int, int]:
    return row.draw, row.stack, row.victim, row.position
