"""Several audits side by side: what is said, the CSV file, and the page."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace

import pytest

from medpfl.auditing.report import compare
from medpfl.core.errors import InputError
from medpfl.core.experiments.settings import Settings
from medpfl.core.verdicts import INCONCLUSIVE, NO_LEAK
from medpfl.reporting.page.comparison import comparison_sentences, differences, write_comparison, write_csv
from tests.reporting.made_up import LAPLACE, SETTINGS, full, row, united
from tests.reporting.test_pages import Page, assert_only_its_own_script

DISCLOSED = {LAPLACE: {"changes": True, "silent": False, "problems": []}}


@dataclass
class Run:
    settings: Settings
    summary: list
    rows: tuple = ()
    pixels: tuple = ("", "")


def run(*summary, **settings):
    return Run(Settings.of({**SETTINGS, "disclosure": DISCLOSED, **settings}), united(summary), (row(),))


def sentences(*runs):
    return comparison_sentences(runs, [f"run {i}" for i, _ in enumerate(runs, 1)])


def asked(**options):
    return {"experiment": {**SETTINGS["experiment"], **options}}


LEAKING = run(full(), about={"title": "Plain"})
HOLDING = run(
    full(defense=LAPLACE, read=0, identified=0.0, identified_low=0.0, identified_high=0.14, verdict=NO_LEAK),
    model={"parameters": 7},
    started="2026-02-02",
)


def test_the_least_and_the_most_exposed_setting_are_named():
    first, *_, second = comparison_sentences([LEAKING, HOLDING], ["a", "b"])
    assert first == (
        "The fewest images are exposed in b with LaplaceNoise(scale=0.01) (none of 24 images reconstructed, none "
        "re-identified), the most in a without a defense (19 of 24 images reconstructed, 22 re-identified)."
    )
    assert second == "The runs differ in: parameters, engine. Keep this in mind when comparing."


def test_a_difference_that_may_be_chance_is_called_so():
    near = run(full(read=18))
    assert "Both leak. Their 95 % intervals overlap, so the difference may be chance." in sentences(LEAKING, near)[0]
    assert sentences(LEAKING, LEAKING)[0].startswith("All settings expose as many images: 19 of 24")


def test_a_failed_attack_is_never_ranked_best():
    """Its control failed, it stopped early, it did not know the defense, or the defense does not disclose itself."""
    few = {"defense": LAPLACE, "read": 2, "identified": 0.1, "knows_defense": True}
    cases = {
        "inconclusive: these attacks fail here even without a defense": {
            **few, "verdict": INCONCLUSIVE, "flags": ["control-failed"]},
        "these attacks fail here even without a defense": {**few, "flags": ["control-failed"]},
        "the searches had too small a budget": {**few, "flags": ["out-of-budget"]},
        "some images were not attacked": {**few, "flags": ["incomplete"]},
        "these attacks did not know the defense": {**few, "knows_defense": False},
        "these attacks made no use of what the defense discloses": {**few, "flags": ["disclosure-unused"]},
    }  # fmt: skip
    for why, cell in cases.items():
        found = sentences(LEAKING, run(full(**cell)), run(full(read=9)))
        assert found[0].startswith("The fewest images are exposed in run 3 without a defense (9 of 24"), why
        left_out = (
            "Not counted among the least exposed, since a failed attack shows nothing there: run 2 with LaplaceNoise"
        )
        assert found[1].startswith(f"{left_out}(scale=0.01) ({why}")
        assert sentences(run(full(**cell)), LEAKING)[0] == "No two of these settings can be ranked."
    silent = {LAPLACE: {"changes": True, "silent": True}}
    assert "does not disclose what" in sentences(LEAKING, run(full(**few), disclosure=silent))[1]
    naive = full(**{**few, "knows_defense": False})
    naive_too = run(full(**{**few, "ssim": 0.5}), naive)
    assert sentences(LEAKING, naive_too)[0].startswith("The fewest images are exposed in run 2 with Laplace")
    unused = run(full(**few), naive)
    told = "these attacks made no use of what the defense discloses"
    assert f"(scale=0.01) ({told})." in sentences(LEAKING, unused)[1], "both leak, with equal scores"


def test_a_leak_may_be_the_most_exposed_setting_whatever_is_in_doubt():
    stopped = run(full(read=23, flags=["out-of-budget"]))
    assert "the most in run 2 without a defense (23 of 24" in sentences(LEAKING, stopped)[0]


@pytest.mark.parametrize(("other", "told"), [
    (asked(attacks=["iDLG(steps=3)"]), "restarts=4); run 2: iDLG(steps=3))"),
    (asked(images=6), "number of images (run 1: 24; run 2: 6)"),
    (asked(draws=2), "draws of weights (run 1: \u2013; run 2: 2)"),
    ({"grants": ["labels", "order", "defense"]}, "grants (run 1: labels; run 2: labels, order)"),
    ({"seed": 2}, "seed (run 1: 20260101; run 2: 2)"),
    ({"tolerance": 0.4}, "tolerance (run 1: 0.2; run 2: 0.4)"),
    ({"data": {**SETTINGS["data"], "source": "other images"}}, "differ in data"),
    ({"data": {**SETTINGS["data"], "shape": [1, 32, 32]}}, "differ in data"),
])  # fmt: skip
def test_runs_with_different_tests_are_not_ranked_against_each_other(other, told):
    weak = run(full(read=0, verdict=NO_LEAK), **other)
    found = sentences(LEAKING, weak)
    assert found[0] == "No two of these settings can be ranked."
    assert "Runs are ranked only if their tests are the same. These tests differ in" in found[1]
    assert told in found[1]
    third = sentences(LEAKING, weak, run(full(read=9), experiment=LEAKING.settings.experiment))[0]
    assert third.startswith("Among run 1 and run 3: the fewest images are exposed in run 3")


def test_digests_under_one_key_tell_data_of_equal_names_apart():
    same, other, elsewhere = (replace(LEAKING, pixels=one) for one in (("k", "a"), ("k", "b"), ("l", "c")))
    assert "differ in data" in sentences(same, other)[1]
    assert sentences(same, other)[-1] == "The runs have the same settings otherwise."
    assert sentences(same, elsewhere)[0].startswith("All settings"), "under another key, a digest says nothing"


def test_knowledge_of_a_defense_belongs_to_runs_that_test_one():
    assert sentences(run(full(), grants=["labels"]), HOLDING)[0].startswith("The fewest images are exposed in run 2")


def test_equal_settings_are_called_so():
    same = run(full(), started="2027-01-01")
    assert differences([LEAKING, same]) == []
    assert sentences(LEAKING, same)[-1].startswith("The runs have the same settings")


def test_the_csv_file_has_a_line_for_each_cell(tmp_path):
    with write_csv(tmp_path / "all.csv", [LEAKING, HOLDING]).open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(one["run"], one["defense"], float(one["asr"])) for one in lines] == [
        ("run 1 (Plain)", "NoDefense()", pytest.approx(19 / 24)),
        ("run 2", LAPLACE, 0.0),
    ]
    first = lines[0]
    assert (first["model"], first["plan"], first["seed"]) == ("LeNet()", "Plan(learning_rate=0.01)", "20260101")
    assert (first["psnr"], first["mse"], first["evaluations"]) == ("31.4", "0.0021", "12345")
    assert (first["asr_random_update"], first["ssim_mean_image"], first["updates"]) == ("0.0", "0.42", "0")


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
