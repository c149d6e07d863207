"""The sentences of a federation's page: they begin with the verdict on the whole."""

from __future__ import annotations

import html
from dataclasses import replace

import pytest

from medpfl.core.experiments.settings import Settings
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, RECORDED, UNDEFENDED
from medpfl.judging.types import Cell, Rate, Union
from medpfl.reporting.federation import Overview, RecordCells, sentences, state, verdicts, write_federation_page
from medpfl.reporting.page.answer import answered


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


def failed(*flags: str, attack: str = "iDLG()", defense: str = RECORDED) -> Cell:
    none = Rate(0.0, 0.0, 0.6)
    needed = 14 if "too-few" in flags else None
    union = Union(verdict=INCONCLUSIVE, images=4, updates=2, asr=none, updates_needed=needed)
    own = tuple(flag for flag in flags if flag == "too-few")
    return Cell(attack=attack, defense=defense, images=4, asr=none, flags=flags, union=replace(union, flags=own))


def page(tmp_path, told: list[Cell], names=("site-1-round-0001-0a1b2c3d", "site-1-round-0001-4e5f6a7b"), **settings):
    records = [RecordCells("site-1", 1, name, "right", told) for name in names]
    over = Overview(records, told, {"site-1": told}, {1: told})
    write_federation_page(tmp_path / "x.html", {"experiment": settings}, over, str)
    return over, (tmp_path / "x.html").read_text()


def test_attacks_that_fail_without_a_defense_need_other_attacks_and_not_more_records(tmp_path):
    _, text = page(tmp_path, [failed("control-failed")], model="UserModel(call='Net') on (x - 0.508032) / 0.256024")
    steps = text[text.index("What to do next") :]
    assert "further update is a further trial" not in steps
    for command in (
        "medpfl check-model MODEL",
        "medpfl audit IMAGES --model MODEL --mode eval --batch-size 1",
        "medpfl frontier DATA --model MODEL --defense",
    ):
        assert command in html.unescape(steps)
    assert "the user&#39;s own model Net, images normalized by mean 0.508 and standard deviation 0.256" in text


def test_too_few_updates_need_more_records_and_no_option_that_a_record_ignores(tmp_path):
    over, text = page(tmp_path, [failed("too-few")], model="LeNet() on (x - 0.5) / 0.25")
    assert "at least 14 are needed" in sentences(over)[0][1]
    assert "audit more records together" in text
    assert "--images" not in text
    assert 'frontier DATA --model "LeNet()" ' in html.unescape(text)


def test_a_budget_that_ended_is_said_where_the_answer_is(tmp_path):
    over, text = page(tmp_path, [failed("control-failed", "out-of-budget")])
    assert "the searches had too small a budget" in sentences(over)[0][1]
    assert "Let the searches run longer (--minutes)." in text
    shown = answered([failed("control-failed", "out-of-budget", defense=UNDEFENDED)], Settings(record={}))
    assert "had too small a budget" in shown.sentences[0][1]


def test_the_attacks_are_named_where_the_answer_is(tmp_path):
    told = [failed("too-few"), failed("too-few", attack="iDLG(), attempt 2"), failed("too-few", attack="RGAP()")]
    over, _ = page(tmp_path, told)
    assert (None, "Attacks: iDLG, RGAP.") in sentences(over)


def test_two_records_of_one_site_and_round_differ_on_the_page_and_are_said_to_be_two(tmp_path):
    over, text = page(tmp_path, [failed("too-few")])
    for tag in ("0a1b2c3d", "4e5f6a7b"):
        assert f"site-1 ({tag})" in text
    assert over.named(over.records[0]) == "site-1 (record 0a1b2c3d) in round 1"
    assert any("site-1: there are several records of the same round." in said for _, said in sentences(over))
    over, text = page(tmp_path, [failed("too-few")], names=("site-1-round-0001",))
    assert "site-1 (" not in text
    assert not any("several records" in said for _, said in sentences(over))


def test_what_differs_between_records_is_no_shared_setting():
    one = Settings(model={"weights": "0a", "parameters": 5}, versions={"torch": "2"}, seed=1, device="cpu")
    both = one.shared_with([replace(one, model={"weights": "1b", "parameters": 5}, seed=2)])
    assert (both.model, both.versions, both.seed, both.device) == ({"parameters": 5}, {"torch": "2"}, None, "cpu")
