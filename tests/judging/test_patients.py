"""Rates over patients from made-up rows, and the reports' texts about them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from medpfl import Finding, cli
from medpfl.judging import patients
from medpfl.judging.summary import summarize
from medpfl.judging.types import Exposure, flat
from medpfl.metrics.rates import cluster_interval, interval
from medpfl.reporting import patient_lines
from medpfl.reporting.patients import patient_rows
from medpfl.reporting.words import DASH
from tests.auditing.audit_cases import some_images, tiny


def by_patient(rows):
    found = patients.by_patient(rows)
    return None if found is None else found[0]


def one(patient, image, success=False, identified=False, ssim=0.3, **more):
    fields = {
        "attack": "iDLG()", "defense": "NoDefense()", "model": "M()", "data": "d", "plan": "Plan()", "grants": (),
        "control": "", "draw": 0, "stack": 0, "victim": int(image), "position": 0, "image": image, "patient": patient,
        "label": 0, "label_guess": 0, "scores": {"ssim": ssim, "psnr": 10.0}, "success": success,
        "identified": identified, "gallery": 20, "chance": 0.1, "nearest_image": None, "loss": 0.1,
        "steps": 3, "evaluations": 4,
        "ended": "converged", "flags": (), "seed": 0, "engine": "loop of 1", "device": "cpu", "versions": {},
        "seconds": 2.0, "date": "2026-01-01",
    }  # fmt: skip
    return Finding(**{**fields, **more})


ROWS = [
    one("p-a", "0", True, True, 0.95),
    one("p-a", "1"),
    one("p-a", "2"),
    one("p-b", "3", False, True, 0.5),
    one("p-b", "4"),
    one("p-c", "5"),
    one(None, "6", True, True),
]


def test_a_patient_is_exposed_by_any_image():
    told = by_patient(ROWS)
    assert (told.patients, told.images, told.without_patient) == (3, 6, 1)
    assert (told.read_back.value, told.read_back.low, told.read_back.high) == (1 / 3, *interval(1, 3))
    assert (told.identified.value, told.identified.low, told.identified.high) == (2 / 3, *interval(2, 3))
    assert told.chance == pytest.approx((1 - 0.9**3 + 1 - 0.9**2 + 0.1) / 3)


def test_the_worst_tenth_is_named_and_at_least_one():
    (worst,) = by_patient(ROWS).worst
    assert worst == Exposure(patient="p-a", images=3, guesses=3, read_back=1, identified=1, ssim=0.95)
    many = [one(f"p-{i}", str(10 * i + j), i == 7, i == 5, 0.1 + i / 100) for i in range(15) for j in range(2)]
    assert [w.patient for w in by_patient(many).worst] == ["p-7", "p-5"]
    assert [w.patient for w in by_patient([r for r in many if r.patient not in ("p-7", "p-5")]).worst] == [
        "p-14",
        "p-13",
    ]


def test_nothing_is_said_where_every_patient_has_one_image():
    assert by_patient([one("p-a", "0"), one("p-b", "1"), one(None, "2")]) is None
    assert by_patient([one("p-a", "0"), one("p-a", "0", draw=1)]) is None
    assert by_patient([]) is None


def test_images_with_zero_gradients_are_left_out():
    rows = [*ROWS[1:], one("p-a", "0", True, True, flags=("zero-gradient",))]
    told = by_patient(rows)
    assert (told.read_back.value, told.images) == (0, 5)


def test_without_a_gallery_nothing_is_said_of_identification():
    told = by_patient([replace(r, identified=None, chance=None) for r in ROWS])
    assert (told.identified.value, told.identified.low, told.chance) == (None, None, None)
    assert told.read_back.value == 1 / 3


def test_in_a_small_gallery_nothing_is_said_of_identification_either():
    told = by_patient([replace(r, gallery=19) for r in ROWS[:5]])
    assert (told.identified.value, told.chance, told.worst[0].identified) == (None, None, None)
    (line,) = patient_rows(summarize([replace(r, gallery=19) for r in ROWS]))
    assert line.identified == DASH
    assert line.worst == ("p-a: 3 images, 1 reconstructed, best SSIM 0.95",)
    (cell,) = summarize([replace(r, gallery=19) for r in ROWS])
    rates = (cell.identified, cell.identified_mean_image, cell.union.identified, cell.false_security_identified)
    assert {rate.value for rate in rates} == {None}  # pages show a dash wherever the verdict has no rate


def test_patients_that_share_an_update_are_a_cluster():
    rows = [one(f"p-{i}", str(2 * i + j), i < 4, victim=i // 2) for i in range(8) for j in range(2)]
    told = by_patient(rows)
    low, high = cluster_interval([i < 4 for i in range(8)], [i // 2 for i in range(8)])
    assert told.read_back.ends == (low, high)
    assert high - low > interval(4, 8)[1] - interval(4, 8)[0]


def test_patients_that_meet_through_others_are_one_cluster():
    # Updates 0 and 1 hold two patients each, and the last patient is in both.
    rows = [one("p-a", "0", victim=0), one("p-b", "1", victim=1), one("p-c", "2", victim=0), one("p-c", "3", victim=1)]
    told = by_patient(rows)
    assert told.read_back.ends == interval(0, 1)


def test_a_patient_under_several_draws_is_a_cluster_of_trials():
    rows = [one(p, f"{i}{j}", d == 0, draw=d) for i, p in enumerate("abcd") for j in range(2) for d in range(2)]
    told = by_patient(rows)
    assert (told.patients, told.read_back.value) == (4, 0.5)
    hits, clusters = [True, False] * 4, [p for p in "abcd" for _ in range(2)]
    assert told.read_back.ends == cluster_interval(hits, clusters)
    assert told.worst[0].guesses == 4


def test_the_summary_has_it_for_every_cell_and_without_controls():
    control = replace(ROWS[1], control="random-update", success=True)
    cells = summarize([*ROWS, *[replace(r, attack="DLG()", success=False) for r in ROWS], control])
    assert [cell.by_patient.read_back.value for cell in cells] == [1 / 3, 0]


def test_a_terminal_and_a_page_say_it():
    summary = summarize(ROWS)
    heading, line = patient_lines(summary)
    assert "any image" in heading
    assert "3 patients with 6 images (1 image without a known patient left out)" in line
    assert "reconstructed 33 %" in line
    assert "p-a: 3 images, 1 reconstructed, 1 re-identified, best SSIM 0.95" in line
    (told,) = patient_rows(summary)
    assert told.identified.endswith("chance 19 %")
    assert patient_lines(summarize(ROWS[3:4])) == []


@pytest.mark.slow
def test_an_audit_of_patients_with_several_images(tmp_path):
    data = some_images(8, patients=["Smith"] * 3 + ["Jones"] * 3 + ["Miller", None])
    report = tiny(data, images=8, out=tmp_path / "run")
    told = json.loads((tmp_path / "run" / "share/summary.json").read_text())[0]["by_patient"]
    assert told == flat(report.summary[0].by_patient)
    assert (told["patients"], told["images"], told["without_patient"]) == (3, 7, 1)
    page = (tmp_path / "run" / "share/report.html").read_text()
    assert "By patient" in page
    assert told["worst"][0]["patient"] in page
    assert "Smith" not in page


@pytest.mark.slow
def test_the_command_line_prints_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["--model", "LeNet('idlg')", "--attack", "iDLG(steps=3)", "--images", "12", "--size", "16"]
    assert cli.main(["audit", *words]) == 0
    assert "By patient (exposed if any image is):" in capsys.readouterr().out
