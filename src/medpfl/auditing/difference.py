"""How much better an attack is that knows the defense: what an audit without it would promise falsely."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medpfl.auditing.checks import clusters_of
from medpfl.core.types import Finding
from medpfl.metrics.rates import mean_interval

__all__ = ["false_security"]

_SCORES: dict[str, Callable[[Finding], float | None]] = {
    "asr": lambda row: float(row.success),
    "ssim": lambda row: row.scores.get("ssim"),
    "identified": lambda row: None if row.identified is None else float(row.identified),
}


def false_security(naive: Sequence[Finding] | None, adaptive: Sequence[Finding]) -> dict[str, float | None]:
    """Adaptive less naive: of the rates, and of the mean SSIM, on the images that both attacked.

    Args:
        naive: the rows of the attack that was not told of the defense; ``None`` if it was not run.
        adaptive: the rows of the same attack on the same updates, told of it.

    Returns:
        ``false_security_asr``, ``..._ssim`` and ``..._identified``, each with its 95 % interval (``..._low``,
        ``..._high``; Student's, of the paired differences, by cluster; ``None`` where they do not vary); ``None``
        where there is nothing to compare.
    """
    before = {_place(row): row for row in naive or () if "zero-gradient" not in row.flags}
    pairs = [(before[_place(row)], row) for row in adaptive if _place(row) in before]
    found: dict[str, float | None] = {}
    for name, score in _SCORES.items():
        known = [(score(old), score(new), new) for old, new in pairs]
        gains = [(new - old, row) for old, new, row in known if old is not None and new is not None]
        values = [gain for gain, _ in gains]
        key, varies = f"false_security_{name}", len(set(values)) > 1
        found[key] = sum(values) / len(values) if values else None
        low, high = mean_interval(values, clusters=clusters_of([row for _, row in gains])) if varies else (None, None)
        found |= {f"{key}_low": low, f"{key}_high": high}
    return found


def _place(row: Finding) -> tuple[int, int, int, int]:
    return row.draw, row.stack, row.victim, row.position
