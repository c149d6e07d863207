"""Several audits side by side: what is said, the CSV file, and the page."""

from __future__ import annotations

import csv
from dataclasses import dataclass

import pytest

from medpfl.auditing.report import compare
from medpfl.core.errors import InputError
from medpfl.core.experiments.settings import Settings
from medpfl.reporting.page.comparison import comparison_sentences, differences, write_comparison, write_csv
from tests.reporting.made_up import LAPLACE, SETTINGS, full, row, united
from tests.reporting.test_pages import Page, assert_only_its_own_script


@dataclass
class Run:
    settings: Settings
    summary: list
    rows: tuple = ()


def run(*summary, **settings):
    return Run(Settings.of({**SETTINGS, **settings}), united(summary), (row(),))


LEAKING = run(full(), about={"title": "Plain"})
HOLDING = run(
    full(defense=LAPLACE, read=0, identified=0.0, identified_low=0.0, identified_high=0.14, verdict="inconclusive"),
    model={"parameters": 7},
    started="2026-02-02",
)


def test_the_least_and_the_most_exposed_setting_are_named():
    first, second = comparison_sentences([LEAKING, HOLDING], ["a", "b"])
    assert first == (
        "The fewest images are exposed in b with LaplaceNoise(scale=0.01) (none of 24 images reconstructed, none "
        "re-identified), the most in a without a defense (19 of 24 images reconstructed, 22 re-identified)."
    )
    assert second == "The runs differ in: parameters, engine. Keep this in mind when comparing."


def test_a_difference_that_may_be_chance_is_called_so():
    near = run(full(read=18))
    assert "overlap, so the difference may be chance." in comparison_sentences([LEAKING, near], "ab")[0]
    assert comparison_sentences([LEAKING, LEAKING], "ab")[0].startswith("All settings expose as many images: 19 of 24")


def test_equal_settings_and_different_data_are_told_apart():
    same = run(full(), started="2027-01-01")
    assert differences([LEAKING, same]) == []
    assert comparison_sentences([LEAKING, same], "ab")[1].startswith("The runs have the same settings")
    other = run(full(), data={**SETTINGS["data"], "source": "other images"})
    assert "They attack different data" in comparison_sentences([LEAKING, other], "ab")[1]


def test_the_csv_file_has_a_line_for_each_cell(tmp_path):
    with write_csv(tmp_path / "all.csv", [LEAKING, HOLDING]).open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(one["run"], one["defense"], float(one["asr"])) for one in lines] == [
        ("run 1 (Plain)", "NoDefense()", pytest.approx(19 / 24)),
        ("run 2", LAPLACE, 0.0),
    ]


def test_the_page_names_runs_by_number_and_title_and_shows_no_image(tmp_path):
    html = write_comparison(tmp_path / "page.html", [LEAKING, HOLDING]).read_text()
    page = Page(html)
    assert_only_its_own_script(html)
    assert "<img" not in html
    assert str(tmp_path) not in html
    assert html.count("<tbody role") == 3
    for text in ("run 1 (Plain)", "run 2", "Settings in which the runs differ", "Model: parameters", "16,330"):
        assert text in page.words
    assert len(page.ids) == len(set(page.ids))


def test_one_run_is_no_comparison(tmp_path):
    with pytest.raises(InputError, match="two run directories or more"):
        compare([tmp_path])
    with pytest.raises(InputError):
        compare([tmp_path, tmp_path])
