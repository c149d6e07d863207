"""The realism meter's page, from made-up cells."""

from __future__ import annotations

import pytest
from rich.console import Console

from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.judging.dependence import ENDS, STAYS, UNCLEAR, WEAKER
from medpfl.reporting.figures.realism import realism_figure
from medpfl.reporting.page.realism import (
    COLUMNS,
    CaseCells,
    Overview,
    numbers,
    realism_notebook,
    realism_table,
    sentences,
    untested,
    write_realism_page,
)
from tests.reporting.made_up import SETTINGS, full, made, united

GAIN = {"ssim_gain": 0.4, "ssim_gain_low": 0.3, "ssim_gain_high": 0.5}
ASSUMED = "1 image per update, eval mode, an untrained model, 1 local step, known labels, no noise"


def case(name, read, assumption="1 image", text=None, updates=24, told=None, **more):
    """Return a case in which `read` of 24 images are reconstructed."""
    verdict = more.pop("verdict", LEAKS if read else INCONCLUSIVE)
    rates = {"identified": told, "identified_low": told, "identified_high": told}
    cells = united([full(read=read, verdict=verdict, **{**GAIN, **rates, **more})], updates=updates)
    return CaseCells(name, assumption, text or f"{name} instead", cells)


def overview(*cases, left_out=("8 images in a batch: it needs 16 images or more",)):
    return Overview([case("favorable", 24, "none", ASSUMED), *cases], left_out)


MIXED = overview(
    case("batch-4", 24, text="4 images in a batch"),
    case("batch-8", 3, text="8 images in a batch"),
    case("train-mode", 0, "eval mode", "train mode"),
    case("steps-5", 0, "1 local step", "5 local steps", updates=2, asr_high=0.95),
    case("together", 0, "all", "everything", verdict=NO_LEAK),
)


def said(over):
    return [text for _, text in sentences(over)]


def test_the_words_say_in_which_cases_the_leak_stays_gets_weaker_ends_or_is_unclear():
    told = said(MIXED)
    assert f"In the most favorable case for an attacker ({ASSUMED}), this attack reconstructed 24 of 24" in told[0]
    assert told[1] == "The leak stays with 4 images in a batch."
    assert told[2] == ("It is weaker, but still there, with 8 images in a batch (12 % reconstructed instead of 100 %).")
    assert told[3] == "It is no longer found with train mode (0 % reconstructed instead of 100 %)."
    assert told[4] == (
        "Too few updates to tell whether it ends with 5 local steps (0 % reconstructed instead of 100 %, 2 updates)."
    )
    assert "as in a federation (everything)" in told[5]
    assert told[5].endswith("the leak is no longer found.")
    assert [line["leak"] for line in numbers(MIXED)] == [STAYS, STAYS, WEAKER, ENDS, UNCLEAR, ENDS]
    assert untested(MIXED) == ["Not tested: 8 images in a batch: it needs 16 images or more."]


def page(over, tmp_path):
    return write_realism_page(tmp_path, SETTINGS, over).read_text()


@pytest.mark.parametrize(
    ("last", "answer"),
    [
        ({"read": 24}, "No: the leak stays when all of them are dropped together."),
        ({"read": 3}, "In part: when all of them are dropped together, the leak is weaker, but still there."),
        ({"read": 0}, "Yes: when all of them are dropped together, the leak is no longer found."),
        ({"read": 0, "asr_high": 0.95}, "Unclear: too few updates"),
    ],
)
def test_the_answer_is_that_without_any_of_the_assumptions(last, answer, tmp_path):
    assert answer in page(overview(case("batch-4", 0), case("together", **last)), tmp_path)


def test_the_answer_names_each_assumption_once(tmp_path):
    text = page(overview(case("batch-4", 3, text="4 images"), case("batch-8", 3, text="8 images")), tmp_path)
    assert "Enough to weaken it, dropped alone: 1 image (instead: 4 images, 8 images)." in text


def test_the_answer_without_that_case(tmp_path):
    text = page(overview(case("batch-4", 0, text="4 images")), tmp_path)
    assert "Unknown: dropping all of them together could not be tested." in text
    assert "Enough to end it, dropped alone: 1 image (instead: 4 images)." in text


@pytest.mark.parametrize(
    ("verdict", "answer"),
    [(NO_LEAK, "There is no leak to ask about"), (INCONCLUSIVE, "Unknown: even the most favorable case")],
)
def test_without_a_leak_in_the_most_favorable_case_nothing_is_claimed(verdict, answer, tmp_path):
    over = Overview([case("favorable", 0, "none", ASSUMED, verdict=verdict), case("together", 0, verdict=verdict)])
    text = page(over, tmp_path)
    assert answer in text
    assert "no longer found" not in text.partition("<footer>")[0].partition("Cases")[0]
    assert {line["leak"] for line in numbers(over)} == {None}
    assert "check-model" in text


def test_the_page_holds_no_image_and_has_all_cases(tmp_path):
    text = page(MIXED, tmp_path)
    assert "<img" not in text
    assert text.count("<svg") == 1
    assert all(column in text for column in COLUMNS)
    assert "instead of eval mode" in text
    assert "Not tested: 8 images in a batch" in text
    assert "--realism --model runs/train" in text, "the page says how to compare a trained model"


def test_a_repeated_command_keeps_the_training(tmp_path):
    unclear = case("batch-8", 0, text="8 images", updates=2, asr_high=0.95)
    for cases, model in (([], "LeNet"), ([case("trained", 24, text="the model after round 3")], "runs/train")):
        text = page(overview(unclear, *cases), tmp_path)
        (command,) = (line for line in text.splitlines() if "--out runs/more" in line)
        assert f"--model {model}" in command.replace("&#34;", "").replace("&#39;", "").replace('"', "")


def test_the_figure_has_a_mark_for_each_known_measure_and_says_all_of_them(monkeypatch):
    kept = []
    from medpfl.reporting.figures.svg import inline

    monkeypatch.setattr(
        "medpfl.reporting.figures.realism.inline", lambda figure, *rest: kept.append(figure) or inline(figure, *rest)
    )
    text = realism_figure(numbers(MIXED), [one.union.leaks_by for one in MIXED.cases])
    assert text.count('class="mark"') == 2 * len(MIXED.cases), "re-identification was not tested"
    assert "5 local steps: reconstructed (ASR) 0 % (0\u201395 %), SSIM above a guess +0.40 (0.30\u20130.50)" in text
    (figure,) = kept
    figure.canvas.draw()
    right = max(one.get_window_extent().x1 for one in figure.axes[0].texts)
    assert right <= figure.axes[0].get_window_extent().x0, "no name reaches into a panel"


def test_an_unknown_measure_is_a_dash():
    bare = Overview([CaseCells("favorable", "none", ASSUMED, [made({"attack": "a()", "defense": "NoDefense()"})])])
    assert realism_figure(numbers(bare), [()]).count('class="mark"') == 0
    assert numbers(bare)[0]["ssim_gain"] is None


def test_a_narrow_terminal_cuts_nothing():
    console = Console(width=80, record=True)
    console.print(realism_table(MIXED))
    text = console.export_text()
    assert "\u2026" not in text
    assert "unclear" in text
    assert "+0.40" in text


def test_a_notebook_gets_a_table():
    text = realism_notebook(MIXED)
    assert text.count("<tr>") == len(MIXED.cases) + 1
    assert "The leak stays with" in text
