"""Rows of several records, judged together: an image counts once."""

from __future__ import annotations

from dataclasses import replace

from medpfl.core.verdicts import LEAKS, RANDOM_UPDATE, RECORDED, UNDEFENDED
from medpfl.federation.pooling import clusters, pooled
from medpfl.judging.summary import Context, summarize
from tests.judging.test_summary import row


def record(*images: str, success: bool = False):
    """Return the rows of a record with these images: of the update, of its control, and of a random update."""
    each = [replace(row(success=success, image=image, position=i)) for i, image in enumerate(images)]
    return [
        *(replace(one, control=RANDOM_UPDATE, success=False, identified=False) for one in each),
        *(replace(one, success=True) for one in each),
        *(replace(one, defense=RECORDED) for one in each),
    ]


def judged(*records):
    found = summarize(pooled(records), Context(record={"defense": UNDEFENDED, "checked": "right"}))
    return next(cell.union for cell in found if cell.defense == RECORDED)


def test_records_that_share_an_image_directly_or_not_are_one_cluster():
    assert clusters([record("a"), record("b"), record("a", "c"), record("c"), record("d")]) == [0, 1, 0, 0, 4]
    assert clusters([record("a"), record("b"), record("a", "b")]) == [0, 0, 0]


def test_different_images_are_independent_updates():
    union = judged(*(record(f"i-{i}") for i in range(20)))
    assert (union.images, union.updates, union.asr.value) == (20, 20, 0)
    union = judged(*(record(f"i-{i}", success=i < 5) for i in range(20)))
    assert (union.asr.value, union.verdict) == (0.25, LEAKS)


def test_an_image_counts_as_reconstructed_if_any_round_reconstructs_it():
    union = judged(record("a", "b"), record("b", "a", success=True), record("a", "b"))
    assert (union.images, union.updates, union.asr.value) == (2, 1, 1)


def test_rounds_with_the_same_images_are_no_further_evidence():
    once, often = judged(record("a")), judged(*(record("a") for _ in range(30)))
    assert (often.images, often.updates) == (once.images, once.updates) == (1, 1)
    assert often.asr.ends == once.asr.ends


def test_an_image_that_is_twice_in_an_update_counts_once_too():
    union = judged(record("a", "a", success=True), record("a", "a"))
    assert (union.images, union.asr.value) == (1, 1)


def test_attempts_have_names_of_their_own_and_controls_go_with_them():
    rows = pooled([record("a"), record("a")])
    assert {one.attack for one in rows} == {"iDLG()", "iDLG(), attempt 2"}
    assert {one.attack for one in rows if one.control} == {"iDLG()", "iDLG(), attempt 2"}
