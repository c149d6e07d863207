"""Verdicts and the reasons to doubt them. A failed attack is not safety."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medpfl.core.types import Finding
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.metrics.rates import interval, mean_interval

__all__ = ["clusters_of", "flags_of", "leaks", "untested", "verdict_of"]


def clusters_of(rows: Sequence[Finding]) -> list[tuple[int, int]]:
    """The update that each row's image is in: of all draws of weights the same, as all attack the same images."""
    return [(row.stack, row.victim) for row in rows]


def leaks(cell: dict[str, Any]) -> bool:
    """Whether more was read back, or pointed to, than a guess made without the update can explain.

    With 95 % confidence the success rate lies above that of every baseline (the mean image, the nearest
    other image, the same attack on a random update), or the identification rate above chance and above
    that of a random update.
    """
    return _reads(cell) or _recognizes(cell)


def _reads(cell: dict[str, Any]) -> bool:
    floor = max(cell[k] or 0.0 for k in ("asr_mean_image", "asr_nearest", "asr_random_update"))
    return cell["asr_low"] is not None and cell["asr_low"] > floor


def _recognizes(cell: dict[str, Any]) -> bool:
    floor = max(cell["chance"] or 0.0, cell["identified_random_update"] or 0.0)
    return cell["identified_low"] is not None and cell["identified_low"] > floor


def untested(cell: dict[str, Any], control: dict[str, Any] | None) -> str | None:
    """The flag of why a failure in this cell is none of the attack; ``None`` if a leak would have shown.

    ``control-failed``: the attack works without the defense no more than with it. ``control-weak``: there, it only
    recognizes the images of a client, and here, the server has no update of one client but a sum of several, which is
    harder to read. ``too-few``: were it as successful as without the defense, so few updates would not show it.
    """
    if control is None or not leaks(control):
        return "control-failed"
    # Of several clients; a few images more may be due to updates that are zero without the defense, and left out.
    a_sum = cell["images"] * control["clusters"] >= 2 * control["images"] * cell["clusters"]
    if a_sum and not _reads(control):
        return "control-weak"
    alike = {"asr_low": _least("asr", cell, control), "identified_low": _least("identified", cell, control)}
    if a_sum:
        alike["identified_low"] = None
    return None if leaks({**cell, **alike}) else "too-few"


def _least(rate: str, cell: dict[str, Any], control: dict[str, Any]) -> float | None:
    """The lower end of the interval of the control's rate, if it were that of the cell's updates."""
    updates = cell["clusters"]
    if control[rate] is None or updates >= control["clusters"]:
        return control[f"{rate}_low"]
    return interval(round(control[rate] * updates), updates)[0]


def verdict_of(cell: dict[str, Any], control: dict[str, Any] | None, naive: bool = False) -> str:
    """One of the three outcomes.

    Args:
        cell: the summary of an attack under a defense.
        control: the same attack's undefended cell; ``None`` if it was not run.
        naive: whether there is a defense that the attack was not told of: its failure says nothing.
    """
    if leaks(cell):
        return LEAKS
    broken = cell["images"] == 0 or cell["nonfinite"] > 0.5
    return INCONCLUSIVE if broken or naive or untested(cell, control) else NO_LEAK


def flags_of(
    rows: Sequence[Finding], cell: dict[str, Any], control: dict[str, Any] | None, naive: bool = False
) -> list[str]:
    """The flags of a cell, from its rows and its control; `naive` as in `verdict_of`."""
    scored = [row for row in rows if "zero-gradient" not in row.flags]
    why, failed = untested(cell, control), not leaks(cell)
    raised = {
        "control-failed": why == "control-failed",
        "control-weak": failed and why == "control-weak",
        "too-few": failed and why == "too-few" and bool(scored),
        "naive-attack": naive and why != "control-failed" and failed,
        "prior-only": bool(scored) and not leaks(cell) and not _beats_baselines(scored, cell),
        "zero-gradient": len(scored) < len(rows),
        "not-converged": _share(scored, "not-converged") > 0.5,
        "nonfinite": cell["nonfinite"] > 0,
        "masked-vector": _mask_leaks(cell),
        "wrong-derivative": _share(scored, "wrong-derivative") > 0,
    }
    return [flag for flag, up in raised.items() if up]


def _mask_leaks(cell: dict[str, Any]) -> bool:
    """Whether one client's masked message says more than random numbers do."""
    if cell.get("asr_masked_vector") is None:
        return False
    alone = {"asr_low": "asr_masked_vector_low", "identified_low": "identified_masked_vector_low"}
    own = {name: cell[key] for name, key in alone.items()}
    return leaks({**cell, **own, "chance": cell["chance_masked_vector"]})


def _share(rows: Sequence[Finding], flag: str) -> float:
    return sum(flag in row.flags for row in rows) / len(rows) if rows else 0.0


def _beats_baselines(rows: Sequence[Finding], cell: dict[str, Any]) -> bool:
    """Whether the mean SSIM is above every baseline's, image by image where the baseline has the image."""
    gains = [
        [float(row.scores["ssim"] or 0) - float(row.scores[name] or 0) for row in rows]
        for name in ("mean_image_ssim", "nearest_ssim")
        if all(row.scores.get(name) is not None for row in rows)
    ]
    if cell["ssim_random_update"] is not None:
        gains.append([float(row.scores["ssim"] or 0) - cell["ssim_random_update"] for row in rows])
    return all(_above_zero(gain, rows) for gain in gains)


def _above_zero(gains: list[float], rows: Sequence[Finding]) -> bool:
    low, _ = mean_interval(gains, clusters=clusters_of(rows))
    return min(gains) > 0 if low is None else low > 0
