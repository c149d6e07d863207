"""Numbers beside the threshold that they are compared with, and intervals beside the updates that they count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medpfl.core.experiments.settings import Settings
from medpfl.core.verdicts import INCONCLUSIVE, NO_LEAK, SUCCESS
from medpfl.judging.summary import summarize
from medpfl.reporting.figures.panels import pair_of
from medpfl.reporting.frontier import sentences as frontier_sentences
from medpfl.reporting.page.answer import answered, bars
from medpfl.reporting.page.lines import lines_of
from medpfl.reporting.phrases import images_needed
from medpfl.reporting.tables import entries
from medpfl.reporting.verdict import verdict_sentences
from medpfl.reporting.words import percents, similarity
from tests.reporting.made_up import LAPLACE, cell, full, picture, row, united
from tests.reporting.test_frontier_page import CHOSEN, POINTS, SETTINGS


@pytest.mark.parametrize("ssim", [0.1, 0.894, 0.895, 0.896, 0.8999, 0.89999, 0.9, 0.9004, 0.95, 1.0, -0.2])
def test_a_printed_ssim_is_on_the_side_where_it_counts(ssim):
    assert (float(similarity(ssim).replace("\u2212", "-")) >= SUCCESS) == (ssim >= SUCCESS)
    assert len(similarity(ssim).lstrip("\u2212")) == 4 or abs(ssim - SUCCESS) < 0.006


def test_a_tile_does_not_round_up_to_the_threshold():
    assert pair_of("best guess", row(ssim=0.896), picture).scores.startswith("SSIM 0.896,")


@pytest.mark.parametrize("threshold", [0.2, 0.05, 0.07, 0.125])
@pytest.mark.parametrize("off", [-0.004, -0.0004, 0.0, 0.0004, 0.004])
@pytest.mark.parametrize("above", [False, True])
def test_a_printed_end_of_an_interval_is_on_its_side_of_the_tolerance(threshold, off, above):
    end = threshold + off
    shown = float(percents(0.0, end, threshold, above).removesuffix(" %").split("\u2013")[1])
    meant = round(100 * end, 9)
    passed = (lambda one: one > 100 * threshold + 1e-9) if above else (lambda one: one >= 100 * threshold - 1e-9)
    assert passed(shown) == passed(meant)


def test_the_verdict_names_an_end_just_below_the_tolerance_as_below():
    held = {**full(defense=LAPLACE, read=0, images=17, verdict=NO_LEAK), "asr_high": 0.195}
    (_, defended) = united([full(), held])
    assert entries(defended)[1].notes[0] == "0\u201319.5 %"


def test_a_frontier_names_an_end_just_above_its_limit_as_above():
    points = [POINTS[0], {**POINTS[1], "asr_high": 0.1004}, *POINTS[2:]]
    assert "95 % interval 0\u201310.04 %" in frontier_sentences(points, CHOSEN, SETTINGS)[1]


# --- intervals count updates -----------------------------------------------------------------------------------------


def batches(updates: int = 2, per_update: int = 4, draws: int = 1):
    """Return the cells of an attack that failed on some updates of several images."""
    rows = [
        row(ssim=0.2, image=f"{victim}-{place}", victim=victim, position=place, draw=draw, success=False, gallery=8)
        for draw in range(draws)
        for victim in range(updates)
        for place in range(per_update)
    ]
    return summarize(rows)


def test_an_interval_says_that_it_counts_updates():
    summary = batches()
    few = "8 images, but only 2 independent updates"
    said = verdict_sentences(summary, Settings())[0]
    assert few in said
    (line,) = lines_of(summary, [])
    assert line.shown[0].notes == ("0\u201384 %", few)
    assert bars(summary)[0].few == few


def test_images_with_updates_of_their_own_need_no_such_word():
    summary = batches(updates=8, per_update=1)
    assert "but only" not in verdict_sentences(summary, Settings())[0]
    assert bars(summary)[0].few == ""


@pytest.mark.parametrize("draws", [1, 3])
def test_the_number_of_images_advised_fills_whole_updates(draws):
    union = batches(draws=draws)[0].union
    assert union.per_update == 4
    assert images_needed(union) == 4 * (union.updates_needed or 0) > 0


def test_updates_that_are_left_out_do_not_lower_the_number_of_images():
    rows = [row(ssim=0.2, image=f"{v}-{p}", victim=v, position=p, success=False) for v in range(3) for p in range(4)]
    rows = [one if one.position else replace(one, flags=("zero-gradient",)) for one in rows]
    union = summarize(rows)[0].union
    assert (union.images, union.updates, union.per_update) == (9, 3, 4)


def test_the_next_step_names_the_images_of_whole_updates():
    open_ = cell(defense=LAPLACE, read=0, images=8, verdict=INCONCLUSIVE, flags=["too-few"], union_flags=["too-few"])
    answer = answered(united([full(), open_], updates=2, per_update=4, updates_needed=17), Settings())
    assert answer.steps[0].command == "medpfl audit ... --images 68"
