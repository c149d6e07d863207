"""The sentences of a federation's page: they begin with the verdict on the whole."""

from __future__ import annotations

import pytest

from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, RECORDED
from medpfl.judging.types import Cell, Rate, Union
from medpfl.reporting.federation import Overview, RecordCells, sentences, state, verdicts


def cells(verdict: str, read: int = 0, images: int = 40) -> list[Cell]:
    rate = Rate(read / images, 0.0, 0.1)
    union = Union(verdict=verdict, images=images, updates=images, asr=rate, identified=rate)
    return [Cell(attack="iDLG()", defense=RECORDED, verdict=verdict, images=images, asr=rate, union=union)]


def overview(pool: str, *records: str, without_truth: int = 0) -> Overview:
    told = [
        RecordCells(f"site-{i}", 1, f"site-{i}-round-0001", "right", cells(verdict, 3 if verdict == LEAKS else 0))
        for i, verdict in enumerate(records, 1)
    ]
    sites = {one.site: one.cells for one in told}
    missing = [f"site-{9 - i}, round 1" for i in range(without_truth)]
    return Overview(told, cells(pool, 3 if LEAKS in (pool, *records) else 0), sites, {1: cells(pool)}, missing)


@pytest.mark.parametrize(
    ("over", "whole", "words"),
    [
        (overview(NO_LEAK, NO_LEAK, NO_LEAK), NO_LEAK, "no leak was found: with 95 % confidence"),
        (overview(LEAKS, LEAKS, NO_LEAK), LEAKS, "an attacker reconstructed 3 of 40 images"),
        (
            overview(NO_LEAK, NO_LEAK, LEAKS),
            LEAKS,
            "1 of 2 records and 1 of 2 sites leak by themselves. Worst: from si",
        ),
        (overview(INCONCLUSIVE, INCONCLUSIVE, LEAKS), LEAKS, "1 of 2 records and 1 of 2 sites leak by themselves."),
        (
            overview(NO_LEAK, NO_LEAK, without_truth=2),
            INCONCLUSIVE,
            "inconclusive, because 2 further records could not",
        ),
        (overview(NO_LEAK, NO_LEAK, LEAKS, without_truth=1), LEAKS, "leak by themselves. Worst: from site-2 in round"),
        (overview(INCONCLUSIVE, INCONCLUSIVE), INCONCLUSIVE, "For all records together, this is inconclusive"),
    ],
)
def test_the_page_begins_with_the_verdict_on_the_whole(over, whole, words):
    said = sentences(over)
    assert state(over) == over.to_dict()["verdict"] == said[0][0] == whole
    assert words in said[0][1]
    assert said[0][1].startswith("From ")
    ranked = [LEAKS, INCONCLUSIVE, NO_LEAK]
    assert min(ranked.index(verdict) for verdict in verdicts(over).values()) == ranked.index(whole)


def test_what_leaks_by_itself_is_followed_by_all_records_together():
    said = sentences(overview(NO_LEAK, NO_LEAK, LEAKS))
    assert said[1] == (NO_LEAK, said[1][1])
    assert said[1][1].startswith("All together: no leak was found: with 95 % confidence")
    assert sum("Worst" in text for _, text in said) == 1
