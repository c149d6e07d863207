"""Rows of several records, judged together: an image counts once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medpfl import InputError, Plan
from medpfl.auditing.report import Report
from medpfl.core.experiments.settings import Settings
from medpfl.core.verdicts import LEAKS, RANDOM_UPDATE, RECORDED, UNDEFENDED
from medpfl.federation.checks import Facts, check_alike
from medpfl.federation.folders import Entry
from medpfl.federation.pooling import clusters, pooled
from medpfl.federation.result import Audited, _context
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


def audited(name: str, defense: str = UNDEFENDED) -> Audited:
    rows = record(f"{name}-image")
    told = Settings(experiment={"defenses": [UNDEFENDED, RECORDED]}, record={"defense": defense, "checked": "right"})
    return Audited(name, 1, f"{name}-round-0001", Report([], rows, told))


def test_a_doubt_about_one_record_holds_for_all_in_any_order():
    bare, unknown = audited("site-1"), audited("site-2", defense="MyFilter()")
    for records in ((bare, unknown), (unknown, bare)):
        context = _context(records)
        assert [context.reason(RECORDED, knows) for knows in (False, True)] == ["undisclosed"] * 2
    assert _context((bare, bare)).reason(RECORDED, True) is None


def test_a_defense_is_the_server_s_alone_only_if_it_is_in_all_records():
    here, there = (audited(site, defense="ServerOnly()") for site in ("site-1", "site-2"))
    settings = replace(there.report.settings, server_only=("ServerOnly()",))
    there = there._replace(report=replace(there.report, settings=settings))
    for records in ((there, here), (here, there)):
        assert _context(records).reason(RECORDED, False) is not None
    assert _context((there, there)).reason(RECORDED, False) is None


def facts(**changed: Any) -> Facts:
    return replace(Facts({"w": (2,)}, (1, 8, 8), Plan(), None), **changed)


def test_records_with_other_filters_are_no_experiment():
    one, other = (Entry(site, 1, f"{site}-round-0001", Path(site)) for site in ("site-1", "site-2"))
    for first, second in (((), ("MyFilter()",)), (("MyFilter()",), ()), (("A(x=1)", "B()"), ("B()", "A(x=1)"))):
        with pytest.raises(InputError, match="different filters changed their updates: ") as error:
            check_alike({one: facts(filters=first), other: facts(filters=second)})
        assert f"{', '.join(first) or 'none'} and {', '.join(second) or 'none'}. Audit them apart" in str(error.value)
    check_alike({one: facts(filters=("A()",)), other: facts(filters=("A()",))})
