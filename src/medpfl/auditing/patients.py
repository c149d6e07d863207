"""A cell of the summary by patient: whoever has several images is exposed by any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from medpfl.auditing.checks import clusters_of
from medpfl.core.types import Finding
from medpfl.metrics.rates import cluster_interval

__all__ = ["by_patient"]

_WORST = 10
"""One patient in so many is named, at least one."""

Trials = dict[tuple[str, int], list[Finding]]


def by_patient(rows: Sequence[Finding]) -> dict[str, Any] | None:
    """Rates over patients, from the rows of one attack and one defense.

    A patient counts, in each draw of weights, as read back if any of his images is, and as identified if any is.
    Patients that share an update, and a patient under several draws, are a cluster.

    Args:
        rows: of images, without controls.

    Returns:
        ``patients``, ``images`` of theirs, ``without_patient``: images of unknown patients, which are left out;
        ``read_back`` and ``identified``, each with ``_low`` and ``_high``; ``chance``: the rate of blind guesses that
        identify a patient by one of his images; ``worst``: the tenth of the patients with most read back, the
        worst first. ``None`` where no patient has two images: it is the summary by image then.
    """
    scored = [row for row in rows if "zero-gradient" not in row.flags]
    known = [row for row in scored if row.patient is not None]
    trials: Trials = {}
    for row in known:
        trials.setdefault((str(row.patient), row.draw), []).append(row)
    if all(len({row.image for row in own}) < 2 for own in trials.values()):
        return None
    return {
        "patients": len({patient for patient, _ in trials}),
        "images": len({row.image for row in known}),
        "without_patient": len({row.image for row in scored if row.patient is None}),
        **_rate("read_back", trials, lambda row: row.success),
        **_rate("identified", trials, lambda row: row.identified),
        "chance": _chance(trials),
        "worst": _worst(known),
    }


def _rate(name: str, trials: Trials, hit: Callable[[Finding], bool | None]) -> dict[str, float | None]:
    told = {key: [hit(row) for row in own if hit(row) is not None] for key, own in trials.items()}
    told = {key: hits for key, hits in told.items() if hits}
    if not told:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    hits = [any(hits) for hits in told.values()]
    together = _clusters(trials)
    low, high = cluster_interval(hits, [together[patient] for patient, _ in told])
    return {name: sum(hits) / len(hits), f"{name}_low": low, f"{name}_high": high}


def _clusters(trials: Trials) -> dict[str, Hashable]:
    """By patient, a number that all have who share an update, directly or through others."""
    cluster: dict[str, int] = {}
    of_update: dict[Hashable, int] = {}
    for number, ((patient, _), own) in enumerate(trials.items()):
        updates = clusters_of(own)
        met = {of_update[u] for u in updates if u in of_update} | ({cluster[patient]} if patient in cluster else set())
        joined = min(met, default=number)
        for known in (cluster, of_update):
            known.update({key: joined for key, value in known.items() if value in met})  # type: ignore[arg-type]  (its own keys)
        cluster[patient] = joined
        of_update |= dict.fromkeys(updates, joined)
    return dict(cluster)


def _chance(trials: Trials) -> float | None:
    misses = [[1 - row.chance for row in own if row.chance is not None] for own in trials.values()]
    rates = [1 - math.prod(own) for own in misses if own]
    return sum(rates) / len(rates) if rates else None


def _worst(rows: Sequence[Finding]) -> list[dict[str, Any]]:
    patients: dict[str, list[Finding]] = {}
    for row in rows:
        patients.setdefault(str(row.patient), []).append(row)
    told = [_exposure(patient, own) for patient, own in patients.items()]
    told.sort(key=lambda one: (-one["read_back"] / one["guesses"], -one["identified"] / one["guesses"], -one["ssim"]))
    return told[: math.ceil(len(told) / _WORST)]


def _exposure(patient: str, rows: Sequence[Finding]) -> dict[str, Any]:
    return {
        "patient": patient,
        "images": len({row.image for row in rows}),
        "guesses": len(rows),
        "read_back": sum(row.success for row in rows),
        "identified": sum(bool(row.identified) for row in rows),
        "ssim": max(row.scores.get("ssim") or 0.0 for row in rows),
    }
