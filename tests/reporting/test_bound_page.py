"""Measured success against the bound: a point's position, the rows' texts, and the figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from medpfl.judging.types import Bound, Cell, Mark, Rate, StatedMechanism
from medpfl.reporting.bounds import Placed, bound_rows, placed, stands
from medpfl.reporting.figures.bounds import bound_figure, bound_section
from medpfl.reporting.frontier import write_frontier_page
from medpfl.reporting.words import DASH
from tests.reporting.made_up import full, made
from tests.reporting.test_frontier_page import CHOSEN, POINTS, SETTINGS

CURVE = [[kappa, min(1.0, 3 * kappa)] for kappa in (0.0, 1e-5, 1e-4, 0.01, 0.1, 1.0)]


def marked(kappa: float | None, high: float | None) -> Mark:
    return Mark(kappa=kappa, kappa_high=high, bound=kappa and 3 * kappa, bound_high=high and 3 * high)


def mechanism(noise: float, unit: str = "image", steps: int = 2) -> StatedMechanism:
    return StatedMechanism(unit=unit, noise=noise, rate=0.5, steps=steps)


def cell(read: int, noise: float = 1.0, gap: str | None = None, identified: float = 0.02, **more: Any) -> Cell:
    bound = Bound(
        rounds=1, mechanisms=(mechanism(noise),), gap=gap, curve=CURVE, no_prior={"asr": 0.0, "identified": 0.4},
        asr=marked(0.0, 0.1), identified=marked(0.05, 0.05),
        guesses={"mean_image": 0.0, "nearest": 0.02, "random_update": None, "chance": 0.05},
    )  # fmt: skip
    return made(full(defense=f"DPSGD(noise={noise})", read=read, identified=identified, bound=bound, **more))


def bounded(one: Cell, **changed: Any) -> Cell:
    return replace(one, bound=replace(one.bound, **changed))


def test_the_strongest_attack_stands_for_a_defense_at_the_largest_kappa_of_its_cells():
    other = bounded(cell(6), asr=marked(0.2, 0.3))
    (one,) = placed([made(full()), cell(3), other, cell(0)])
    assert (one.asr.value, one.identified.value) == (0.25, 0.02)
    assert one.bound.asr.kappa == 0.2
    assert placed([made(full())]) == []


@pytest.mark.parametrize(
    ("rate", "low", "kappa", "words"),
    [
        (0.3, 0.1, 0.1, "not above"),
        (0.31, 0.1, 0.1, "within"),
        (0.9, 0.7, 0.1, "not what it states"),
        (0.5, 0.1, None, DASH),
    ],
)
def test_where_a_rate_stands(rate, low, kappa, words):
    bound = Bound(rounds=1, gap=None, curve=CURVE, asr=marked(kappa, kappa and 0.2))
    one = Placed("D()", bound, Rate(rate, low), Rate())
    assert words in stands(one, "asr")


def test_rows_say_measured_guess_and_bound_and_a_gap_says_why():
    first, second, third, _ = bound_rows(placed([cell(0), cell(3, noise=2.0, gap="no accountant")]))
    assert [value for value, _ in first[:6]] == ["DPSGD(noise=1.0)", "an image", "reconstructed", "0 %", "0 %", "0 %"]
    assert first[1][1] == "noise 1, rate 0.5, 2 steps, over 1 round"
    assert first[5][1] == "30 % at 10 %"
    assert [value for value, _ in second[2:8]] == ["re-identified", "2 %", "5 %", "15 %", "40 %", "not above"]
    assert third[5] == (DASH, "not stated: no accountant")


def test_several_mechanisms_are_named_and_whose_record_it_is():
    both = bounded(cell(0), mechanisms=(mechanism(1.0), mechanism(3.0, "client", steps=1)))
    assert bound_rows(placed([both]))[0][1] == (
        "an image", "noise 1, rate 0.5, 2 steps and noise 3, rate 0.5, 1 step, over 1 round",
    )  # fmt: skip
    client = bounded(cell(0), mechanisms=(mechanism(1.0, "client"),))
    assert bound_rows(placed([client]))[0][1][0] == "an image (as part of its client's data)"


def test_the_section_is_left_out_without_bounds_and_the_figure_without_curves():
    assert bound_section([]) is None
    section = bound_section(placed([cell(3, gap="x")]))
    assert section is not None
    assert section["figures"] == []


def test_the_figure_draws_curve_point_reference_and_guesses(monkeypatch):
    kept: list[Any] = []
    monkeypatch.setattr("medpfl.reporting.figures.bounds.inline", lambda figure, *_: kept.append(figure) or "")
    for event in ("asr", "identified"):
        bound_figure(placed([cell(3), cell(0, noise=2.0), cell(9, noise=3.0, gap="x")]), event)
    read, named = (figure.axes[0] for figure in kept)
    curves = [line for line in read.lines if line.get_label().startswith("DPSGD")]
    assert [line.get_label() for line in curves] == ["DPSGD(noise=1.0)", "DPSGD(noise=2.0)"]
    assert [list(line.get_xydata()[1]) for line in curves] == [[0.01, 0.03]] * 2
    points = [line for line in read.lines if line.get_markersize() == 6.5]
    assert [(p.get_xdata()[0], p.get_ydata()[0]) for p in points] == [(1e-4, 3 / 24), (1e-4, 0.0)]
    assert [text.get_text() for text in read.texts] == ["mean image", "nearest image"]
    assert [text.get_text() for text in named.texts] == ["chance"]
    dotted = [line for line in named.lines if line.get_linestyle() == ":"]
    assert [list(line.get_ydata()) for line in dotted] == [[0.4, 0.4]] * 2


@pytest.mark.slow
def test_a_frontier_s_page_has_the_section_where_a_point_has_a_bound(tmp_path):
    (one,) = placed([cell(3)])
    points = [POINTS[0], {**POINTS[1], "bound": one}]
    page = write_frontier_page(tmp_path, SETTINGS, points, CHOSEN).read_text()
    assert page.count('id="bound-asr-title"') == page.count('id="bound-identified-title"') == 1
    assert "noise 1, rate 0.5, 2 steps, over 1 round" in page
    assert "bound-asr-title" not in write_frontier_page(tmp_path, SETTINGS, POINTS, CHOSEN).read_text()
