"""One entry per attack and defense, computed from rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpfl.auditing.checks import flags_of, verdict_of
from medpfl.core.types import Finding
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, RANDOM_UPDATE, RECORDED, UNDEFENDED
from medpfl.metrics.pixel import SUCCESS
from medpfl.metrics.rates import interval, mean_interval

__all__ = ["summarize"]

_MISMATCH = 1e-3
"""Relative difference from which a recorded update is not what its truth gives."""


def summarize(
    rows: Sequence[Finding], server_side: Sequence[str] = (), record: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The cells in the order of the rows, verdicts and flags included.

    Images whose undefended update is exactly zero are left out of every rate; their share is stated.

    Args:
        rows: of one run.
        server_side: specs of the defenses that act only at the server.
        record: of a recorded update, its relative ``difference`` from what the truth gives, and the
            ``spread`` of the latter with the client's own draws.
    """
    by_cell: dict[tuple[str, str], list[Finding]] = {}
    random: dict[str, list[Finding]] = {}
    for row in rows:
        if row.control == RANDOM_UPDATE:
            random.setdefault(row.attack, []).append(row)
        else:
            by_cell.setdefault((row.attack, row.defense), []).append(row)
    cells = {key: _cell(*key, members, random.get(key[0], [])) for key, members in by_cell.items()}
    for (attack, defense), cell in cells.items():
        control = cells.get((attack, UNDEFENDED))
        cell["control_asr"] = control["asr"] if control else None
        naive = defense not in (UNDEFENDED, RECORDED, *server_side) and not _knowing(by_cell[attack, defense])
        cell["verdict"] = verdict_of(cell, control, naive)
        cell["flags"] = flags_of(by_cell[attack, defense], cell, control, naive)
        if defense in server_side:
            cell["flags"].append("server-side")
        if defense == RECORDED and record and _mismatch(record):
            cell["flags"].append("record-mismatch")
            # A guess of other images than the truth is no failure of the attack.
            cell["verdict"] = LEAKS if cell["verdict"] == LEAKS else INCONCLUSIVE
    return list(cells.values())


def _knowing(rows: Sequence[Finding]) -> bool:
    return all("defense" in row.grants for row in rows)


def _mismatch(record: Mapping[str, Any]) -> bool:
    return record["difference"] > _MISMATCH + record.get("spread", 0.0)


def _cell(attack: str, defense: str, rows: list[Finding], random: list[Finding]) -> dict[str, Any]:
    scored = [row for row in rows if "zero-gradient" not in row.flags]
    random = [row for row in random if "zero-gradient" not in row.flags]
    ssims = _scores(scored, "ssim")
    low, high = mean_interval(ssims)
    labels = [row.label == row.label_guess for row in scored if row.label_guess is not None]
    known = [row.identified for row in scored if row.identified is not None]
    return {
        "attack": attack,
        "defense": defense,
        "images": len(scored),
        **_rate("asr", [row.success for row in scored]),
        "asr_worst": _mean([s >= SUCCESS for s in _scores(scored, "ssim_worst")]),
        "ssim": _mean(ssims),
        "ssim_low": low,
        "ssim_high": None if high is None else min(high, 1.0),  # no image is more like another than itself
        "psnr": _mean(_scores(scored, "psnr")),
        "mse": _mean(_scores(scored, "mse")),
        **_rate("identified", known),
        "gallery": max((row.gallery for row in scored), default=0),
        "chance": _mean([row.chance for row in scored if row.chance is not None]),
        "label_accuracy": _mean(labels),
        "seconds_per_image": _mean([row.seconds for row in rows]),
        "evaluations": _mean([row.evaluations for row in scored]),
        "zero_gradient": 1 - len(scored) / len(rows),
        "nonfinite": _mean(["nonfinite" in row.flags for row in scored]) or 0.0,
        "asr_mean_image": _mean([s >= SUCCESS for s in _scores(scored, "mean_image_ssim")]),
        "asr_nearest": _mean([s >= SUCCESS for s in _scores(scored, "nearest_ssim")]),
        "asr_random_update": _mean([row.success for row in random]),
        "ssim_mean_image": _mean(_scores(scored, "mean_image_ssim")),
        "ssim_nearest": _mean(_scores(scored, "nearest_ssim")),
        "ssim_random_update": _mean(_scores(random, "ssim")),
        "identified_random_update": _mean([row.identified for row in random if row.identified is not None]),
    }


def _scores(rows: Sequence[Finding], name: str) -> list[float]:
    return [value for row in rows if (value := row.scores.get(name)) is not None]


def _mean(values: Sequence[float | bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _rate(name: str, hits: Sequence[bool]) -> dict[str, float | None]:
    if not hits:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = interval(sum(hits), len(hits))
    return {name: sum(hits) / len(hits), f"{name}_low": low, f"{name}_high": high}
