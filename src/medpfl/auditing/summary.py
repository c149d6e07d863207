"""One entry per attack, told of the defense or not, and defense, computed from rows alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medpfl.auditing.checks import clusters_of, flags_of, verdict_of
from medpfl.auditing.difference import false_security
from medpfl.auditing.masks import mask_cell
from medpfl.auditing.patients import by_patient
from medpfl.core.types import Finding
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, MASKED, RANDOM_UPDATE, RECORDED, UNDEFENDED
from medpfl.metrics.pixel import SUCCESS
from medpfl.metrics.rates import cluster_interval, mean_interval

__all__ = ["summarize"]

_MISMATCH = 1e-3
"""Relative difference from which a recorded update is not what its truth gives."""

_LESS_NOISE = 0.85
"""Of the distance of two draws of the stated noise; without any noise, a record is at 0.71 of it from a draw."""

_Key = tuple[str, str, bool]
"""An attack, a defense, and whether the attack is told of it."""


def summarize(
    rows: Sequence[Finding],
    server_side: Sequence[str] = (),
    record: Mapping[str, Any] | None = None,
    server_only: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The cells in the order of the rows, verdicts and flags included.

    Images whose update is exactly zero are left out of every rate; their share is stated. Intervals
    are by cluster: images of one update depend on each other, and so do the draws that attack it again.

    Args:
        rows: of one run.
        server_side: specs of the defenses of which a part acts only at the server.
        record: of a recorded update, the ``defense`` that it is said to have passed, its relative ``difference``
            from what the truth then gives, and the ``spread`` of the latter with the client's own draws.
        server_only: specs of the defenses of which no part acts at the client: there is nothing to know.
    """
    by_cell: dict[_Key, list[Finding]] = {}
    random: dict[str, list[Finding]] = {}
    masked: dict[tuple[str, str], list[Finding]] = {}
    for row in rows:
        if row.control == RANDOM_UPDATE:
            random.setdefault(row.attack, []).append(row)
        elif row.control == MASKED:
            masked.setdefault((row.attack, row.defense), []).append(row)
        else:
            by_cell.setdefault((row.attack, row.defense, row.knows_defense), []).append(row)
    cells = {key: _cell(*key, members, random.get(key[0], [])) for key, members in by_cell.items()}
    for (attack, defense, knows), cell in cells.items():
        control = cells.get((attack, UNDEFENDED, False))
        cell["control_asr"] = control["asr"] if control else None
        cell["by_patient"] = by_patient(by_cell[attack, defense, knows])
        acting = (record or {}).get("defense", UNDEFENDED) if defense == RECORDED else defense
        bare = acting in (UNDEFENDED, *server_only)
        cell.update(_masked(masked.get((attack, defense), [])))
        cell["knows_defense"] = None if bare else knows
        own, other = by_cell[attack, defense, knows], by_cell.get((attack, defense, False)) if knows else None
        cell.update(false_security(other, own))
        naive = not bare and not knows
        cell["verdict"] = verdict_of(cell, control, naive)
        cell["flags"] = flags_of(own, cell, control, naive)
        if defense in server_side:
            cell["flags"].append("server-side")
        if defense == RECORDED and record and _mismatch(record):
            cell["flags"].append("record-mismatch")
            # A guess of other images than the truth is no failure of the attack.
            cell["verdict"] = LEAKS if cell["verdict"] == LEAKS else INCONCLUSIVE
    return list(cells.values())


def _mismatch(record: Mapping[str, Any]) -> bool:
    """Whether an update is too far from what it should be, or nearer to it than the stated noise lets it."""
    difference = record["difference"]
    return difference > _MISMATCH + record.get("spread", 0.0) or difference < _LESS_NOISE * record.get("noise", 0.0)


def _cell(attack: str, defense: str, _: bool, rows: list[Finding], random: list[Finding]) -> dict[str, Any]:
    scored = [row for row in rows if "zero-gradient" not in row.flags]
    random = [row for row in random if "zero-gradient" not in row.flags]
    low, high = mean_interval(_scores(scored, "ssim"), clusters=clusters_of(_with(scored, "ssim")))
    return {
        "attack": attack,
        "defense": defense,
        "images": len(scored),
        "clusters": len(set(clusters_of(scored))),
        **_rate("asr", scored, lambda row: row.success),
        **_rate("asr_worst", scored, _reaches("ssim_worst")),
        "ssim": _mean(_scores(scored, "ssim")),
        "ssim_low": None if low is None else max(low, -1.0),  # of few images the interval is wider than the scale
        "ssim_high": None if high is None else min(high, 1.0),  # no image is more like another than itself
        "psnr": _mean(_scores(scored, "psnr")),
        "mse": _mean(_scores(scored, "mse")),
        **_rate("identified", scored, lambda row: row.identified),
        "gallery": max((row.gallery for row in scored), default=0),
        "chance": _mean([row.chance for row in scored if row.chance is not None]),
        **_rate("label_accuracy", scored, _label_right),
        "label_chance": _label_chance(scored),
        "seconds_per_image": _mean([row.seconds for row in rows]),
        "evaluations": _mean([row.evaluations for row in scored]),
        "zero_gradient": 1 - len(scored) / len(rows),
        "nonfinite": _mean(["nonfinite" in row.flags for row in scored]) or 0.0,
        **_rate("asr_mean_image", scored, _reaches("mean_image_ssim")),
        **_rate("asr_nearest", scored, _reaches("nearest_ssim")),
        **_rate("asr_random_update", random, lambda row: row.success),
        "ssim_mean_image": _mean(_scores(scored, "mean_image_ssim")),
        "ssim_nearest": _mean(_scores(scored, "nearest_ssim")),
        "ssim_random_update": _mean(_scores(random, "ssim")),
        **_rate("identified_random_update", random, lambda row: row.identified),
        "masks": mask_cell(scored, random),
    }


def _masked(rows: Sequence[Finding]) -> dict[str, float | None]:
    """What the same attack makes of one client's masked message."""
    return {
        **_rate("asr_masked_vector", rows, lambda row: row.success),
        "ssim_masked_vector": _mean(_scores(rows, "ssim")),
        **_rate("identified_masked_vector", rows, lambda row: row.identified),
        "chance_masked_vector": _mean([row.chance for row in rows if row.chance is not None]),
    }


def _with(rows: Sequence[Finding], name: str) -> list[Finding]:
    return [row for row in rows if row.scores.get(name) is not None]


def _scores(rows: Sequence[Finding], name: str) -> list[float]:
    return [row.scores[name] or 0.0 for row in _with(rows, name)]


def _mean(values: Sequence[float | bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _reaches(name: str) -> Callable[[Finding], bool | None]:
    def hit(row: Finding) -> bool | None:
        score = row.scores.get(name)
        return None if score is None else score >= SUCCESS

    return hit


def _label_right(row: Finding) -> bool | None:
    return None if row.label_guess is None else row.label == row.label_guess


def _label_chance(rows: Sequence[Finding]) -> float | None:
    """The accuracy of always naming the commonest class."""
    labels = Counter(row.label for row in rows if row.label_guess is not None)
    return max(labels.values()) / labels.total() if labels else None


def _rate(name: str, rows: Sequence[Finding], hit: Callable[[Finding], bool | None]) -> dict[str, float | None]:
    """The share of the rows that hit, of those of which it is known, with its interval."""
    known = [row for row in rows if hit(row) is not None]
    if not known:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    hits = [bool(hit(row)) for row in known]
    low, high = cluster_interval(hits, clusters_of(known))
    return {name: sum(hits) / len(hits), f"{name}_low": low, f"{name}_high": high}
