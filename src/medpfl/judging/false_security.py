"""How much better an attack is that knows the defense: what an audit without it would promise falsely."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from medpfl.core.types import Finding
from medpfl.judging.evidence import clusters_of
from medpfl.judging.types import Rate
from medpfl.metrics.rates import cluster_interval, mean_interval

__all__ = ["false_security"]

_SCORES: dict[str, Callable[[Finding], float | None]] = {
    "asr": lambda row: float(row.success),
    "ssim": lambda row: row.scores.get("ssim"),
    "identified": lambda row: None if row.identified is None else float(row.identified),
}


def false_security(naive: Sequence[Finding] | None, adaptive: Sequence[Finding]) -> dict[str, Rate]:
    """Return adaptive less naive: of the rates, and of the mean SSIM, on the images that both attacked.

    Args:
        naive: the rows of the attack that was not told of the defense; ``None`` if it was not run.
        adaptive: the rows of the same attack on the same updates, told of it.

    Returns:
        By ``asr``, ``ssim`` and ``identified``, the gain with its 95 % interval (by cluster): of the SSIM Student's of
        the paired differences, without ends where they do not vary; of a rate the ends of the shares of images that
        were won and lost, each at 97.5 %, which is cautious. Nothing is known where there is nothing to compare.
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
    """Of gains that are 1, 0 or -1: between the least won and most lost, and the most won and least lost."""
    if not gains:
        return None, None
    won, lost = (cluster_interval([gain == side for gain in gains], clusters, 0.975) for side in (1, -1))
    return won[0] - lost[1], won[1] - lost[0]


def _place(row: Finding) -> tuple[int, int, int, int]:
    return row.draw, row.stack, row.victim, row.position
