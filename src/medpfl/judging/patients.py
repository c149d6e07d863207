"""A cell's rates by patient: a patient with several images is exposed by any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence

from medpfl.core.types import Finding
from medpfl.judging.cells import Evidence, scored
from medpfl.judging.evidence import GALLERY, Tally, clusters_of, identified, mean_identified
from medpfl.judging.types import Exposure, Patients, Rate
from medpfl.metrics.pixel import SUCCESS

__all__ = ["by_patient"]

_WORST = 10
"""One patient in this many is listed as most exposed, and at least one."""

Trials = dict[tuple[str, int], list[Finding]]


def by_patient(rows: Sequence[Finding], random: Sequence[Finding] = ()) -> tuple[Patients, Evidence] | None:
    """Return the rates by patient for one attack on one defense, still without a verdict, and the evidence for one.

    In each draw of weights, a patient counts as reconstructed if any of their images is, and as re-identified if any
    is. Patients who share an update form a cluster, and so does one patient under several draws.

    Args:
        rows: the cell's rows, without controls.
        random: rows for the same attack on random updates; their rates are part of the floor.

    Returns:
        The numbers and the evidence, or ``None`` if no patient has two images: then they would repeat the summary by
        image.
    """
    own = scored(rows)
    known = [row for row in own if row.patient is not None]
    trials, lucky = _trials(known), _trials(scored(random))
    if all(len({row.image for row in images}) < 2 for images in trials.values()):
        return None
    together, chance = _clusters(trials), _chance(trials)
    explained = max(_share(trials, _reaches(name)) for name in ("mean_image_ssim", "nearest_ssim"))
    named = _share(trials, lambda row: bool(mean_identified(row)))
    known_floor = max(chance or 0.0, named)
    floor = max(known_floor, _share(lucky, lambda row: bool(identified(row))))
    explained = max(explained, _share(lucky, lambda row: row.success))
    read = _tally(trials, lambda row: row.success, together, explained, 0.0)
    large = all(row.gallery >= GALLERY for row in known)
    told = _tally(trials, identified, together, floor, known_floor) if large else None
    numbers = Patients(
        patients=len({patient for patient, _ in trials}),
        images=len({row.image for row in known}),
        without_patient=len({row.image for row in own if row.patient is None}),
        read_back=_rate(read),
        identified=_rate(told),
        chance=chance if large else None,
        worst=tuple(_worst(known)),
    )
    return numbers, Evidence(read, told, None, True)


def _trials(rows: Iterable[Finding]) -> Trials:
    found: Trials = {}
    for row in rows:
        if row.patient is not None:
            found.setdefault((str(row.patient), row.draw), []).append(row)
    return found


def _tally(
    trials: Trials,
    hit: Callable[[Finding], bool | None],
    together: dict[str, Hashable],
    floor: float,
    known_floor: float,
) -> Tally | None:
    told = {key: [hit(row) for row in own if hit(row) is not None] for key, own in trials.items()}
    told = {key: hits for key, hits in told.items() if hits}
    if not told:
        return None
    hits = tuple(any(hits) for hits in told.values())
    return Tally(hits, tuple(together[patient] for patient, _ in told), floor, known_floor)


def _rate(tally: Tally | None) -> Rate:
    return Rate() if tally is None else Rate(tally.rate, *tally.interval)


def _share(trials: Trials, hit: Callable[[Finding], bool]) -> float:
    return sum(any(map(hit, own)) for own in trials.values()) / len(trials) if trials else 0.0


def _reaches(name: str) -> Callable[[Finding], bool]:
    return lambda row: (row.scores.get(name) or 0.0) >= SUCCESS


def _clusters(trials: Trials) -> dict[str, Hashable]:
    """Return each patient's cluster number; patients linked by shared updates, directly or not, have the same one."""
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


def _worst(rows: Sequence[Finding]) -> list[Exposure]:
    patients: dict[str, list[Finding]] = {}
    for row in rows:
        patients.setdefault(str(row.patient), []).append(row)
    told = [_exposure(patient, own) for patient, own in patients.items()]
    told.sort(key=lambda one: (-one.read_back / one.guesses, -(one.identified or 0) / one.guesses, -one.ssim))
    return told[: math.ceil(len(told) / _WORST)]


def _exposure(patient: str, rows: Sequence[Finding]) -> Exposure:
    return Exposure(
        patient=patient,
        images=len({row.image for row in rows}),
        guesses=len(rows),
        read_back=sum(row.success for row in rows),
        identified=sum(told) if (told := [hit for row in rows if (hit := identified(row)) is not None]) else None,
        ssim=max(row.scores.get("ssim") or 0.0 for row in rows),
    )
