"""The pages of a training and its leakage, from made-up rows: every gap is a dash, and nothing breaks them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from medpfl.core.rounds import Round
from medpfl.reporting.training import judging_set, sentences, shown_rounds, training_table, write_training_page


def row(number: int, auroc: float | None = 0.9, **more) -> Round:
    rates = {"accuracy": 0.8, "balanced_accuracy": 0.7}
    ends = {f"{name}_{end}": value + by for name, value in rates.items() for end, by in (("low", -0.1), ("high", 0.1))}
    scores = {**rates, **ends, "auroc": auroc, "loss": 0.5, "images": 40.0}
    given = {
        "round": number, "clients": (0, 1), "images": 20, "scores": {"validation": scores, "test": scores},
        "update_norm": 0.1 * number, "sent_norm": 0.2, "bytes_sent": 1500 * bool(number), "epsilon": None,
        "delta": 1e-5, "seed": 0, "device": "cpu", "versions": {}, "seconds": 1.0, "date": "",
    }  # fmt: skip
    return Round(**{**given, **more})


SETTINGS = {
    "experiment": {"defense": "TopK(keep=0.1)", "clients": 2},
    "notes": ["client 1 <b>"],
    "versions": {"medpfl": "1"},
}


def test_the_page_holds_figures_table_and_notes(tmp_path):
    page = write_training_page(tmp_path, SETTINGS, [row(n) for n in range(5)]).read_text()
    assert page.count("<svg") == 3
    assert page.count('data-label="Round"') == 5
    assert "client 1 &lt;b&gt;" in page
    assert "<img" not in page
    assert "On the validation images" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("count", [1, 2])
def test_gaps_are_dashes(count, tmp_path):
    rows = [row(n, auroc=None) for n in range(count)]
    page = write_training_page(tmp_path, {}, rows).read_text()
    assert "AUROC undefined (all images belong to one class)" in page
    assert "nan" not in page.lower().replace("name", "")


@pytest.mark.slow
def test_epsilon_is_drawn_where_it_is_known(tmp_path):
    spent = [row(n, epsilon=(("image", float(n)), ("client", 2.5 * n))) for n in range(4)]
    page = write_training_page(tmp_path, SETTINGS, spent).read_text()
    assert "epsilon so far, 3 (image), 7.5 (client) at the end" in page
    assert "epsilon so far (client)" in page
    assert 'data-label="Epsilon"><span>3 (image), 7.5 (client)</span>' in page, "the table's last row"
    assert "epsilon is 3 for one image and 7.5 for one client at delta 1e-05" in sentences(spent, SETTINGS)[1]
    assert "epsilon so far" not in write_training_page(tmp_path, SETTINGS, [row(0), row(1)]).read_text()


def test_epsilon_of_an_earlier_version_has_no_unit():
    old = Round.from_dict({**row(1).to_dict(), "epsilon": 2.5})
    assert old.epsilon == (("", 2.5),)
    assert "epsilon is 2.5 at delta" in sentences([old], SETTINGS)[1]
    new = row(1, epsilon=(("image", 2.5),))
    assert Round.from_dict(json.loads(json.dumps(new.to_dict()))) == new


def test_sentences_say_what_was_sent_and_under_what():
    first, second = sentences([row(n) for n in range(3)], SETTINGS)
    assert (
        "After 2 rounds with TopK(keep=0.1), the model classifies 80 % (95 % interval 70\u201390 %) of the 40 test"
        in first
    )
    assert second == "2 clients sent 3 kB in total."


def test_the_first_and_the_last_round_are_always_shown():
    rows = [row(n) for n in range(100)]
    shown = shown_rounds(rows, 12)
    assert (len(shown), shown[0].round, shown[-1].round) == (12, 0, 99)
    assert shown_rounds(rows[:5], 12) == rows[:5]
    assert training_table(rows).row_count == 12


def test_without_a_test_set_validation_counts():
    only = replace(row(0), scores={"validation": row(0).scores["validation"]})
    assert (judging_set([only]), judging_set([row(0)])) == ("validation", "test")
