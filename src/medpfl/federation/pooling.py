"""The rows of several records as those of one audit, in which an image counts once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from medpfl.core.types import Finding

__all__ = ["clusters", "pooled"]


def pooled(records: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Return the rows of all records, so that `medpfl.judging.summary.summarize` judges them together.

    Records that share an image are one cluster, as several draws of weights are in an audit: they depend on each other.
    In a cluster, an image keeps its place. Each further record of it is a further attempt, with an attack's name of its
    own. So an image counts once, and counts as reconstructed if any attempt reconstructed it; the baselines get as many
    attempts.

    Args:
        records: each record's rows, with its controls, in the order of the rounds.
    """
    places: dict[tuple[int, str, int], int] = {}
    made, attempts = [], dict[int, int]()
    for rows, cluster in zip(records, clusters(records), strict=True):
        attempt = attempts[cluster] = attempts.get(cluster, -1) + 1
        copies: dict[tuple[int, str], list[int]] = {}
        for row in rows:
            own = copies.setdefault((row.victim, row.image), [])
            if row.position not in own:
                own.append(row.position)
        for row in rows:
            copy = sorted(copies[row.victim, row.image]).index(row.position)
            position = places.setdefault((cluster, row.image, copy), len(places))
            attack = f"{row.attack}, attempt {attempt + 1}" if attempt else row.attack
            made.append(replace(row, attack=attack, stack=cluster, position=position))
    return made


def clusters(records: Iterable[Iterable[Finding]]) -> list[int]:
    """Return the number of each record's cluster; records that share an image, directly or not, have the same."""
    owners: dict[str, int] = {}
    found: list[int] = []
    for number, rows in enumerate(records):
        images = {row.image for row in rows}
        met = {owners[image] for image in images if image in owners}
        joined = min(met, default=number)
        owners |= {image: joined for image, owner in owners.items() if owner in met} | dict.fromkeys(images, joined)
        found = [joined if owner in met else owner for owner in found] + [joined]
    return found
