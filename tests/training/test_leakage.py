"""Leakage over a training: an audit for each round, one figure, and rows that state their round."""

from __future__ import annotations

import json
import signal

import pytest

from medpfl import InputError, audit
from medpfl.cli import main
from medpfl.training.leakage import leakage, rounds_in
from tests.auditing.audit_cases import draw_folder, plain, some_images
from tests.flat import flat
from tests.processes import start
from tests.training.training_cases import small

AUDIT = {"attacks": ["iDLG(steps=3)"], "defenses": ["LaplaceNoise(scale=0.1)"], "images": 2}


@pytest.mark.slow
def test_each_round_is_audited_as_it_would_be_alone(tmp_path):
    out = tmp_path / "runs" / "t"
    rows = small(out=out).rows
    found = flat(leakage, out, some_images(8), [0, 3, 3], **AUDIT)
    assert list(found.reports) == [0, 3]
    accuracies = {n: rows[n].scores["validation"]["balanced_accuracy"] for n in (0, 3)}
    assert all(one.balanced_accuracy == accuracies[one.round] for one in found.summary)
    assert flat(leakage, out / "round-3", some_images(8), [3], **AUDIT).accuracies == {3: accuracies[3]}
    alone = flat(audit, out / "round-3", some_images(8), **AUDIT)
    changing = ("image", "patient")
    assert plain(found.reports[3].rows, *changing) == plain(alone.rows, *changing)
    assert {row["round"] for row in found.rows} == {0, 3}
    assert [one.round for one in found.summary] == [0, 0, 0, 3, 3, 3]  # the defense without and with the grant
    assert [r.scores for r in found.reports[0].rows] != [r.scores for r in found.reports[3].rows]
    assert "Among the models of rounds 0, 3, " in str(found)


@pytest.mark.slow
def test_the_overview_is_beside_the_audits_and_continues(tmp_path, capsys):
    data = draw_folder(tmp_path / "data", {"a": 10, "b": 10})
    train = ["train", str(data), "--model", "MLP((6,))", "--size", "16", "--rounds", "2", "--batch-size", "2"]
    assert main([*train, "--clients", "2", "--out", str(tmp_path / "t")]) == 0
    words = ["audit", str(data), "--model", str(tmp_path / "t"), "--size", "16", "--attack", "iDLG(steps=3)"]
    words += ["--images", "2", "--rounds", "0,2", "--out", str(tmp_path / "runs" / "o")]
    assert main(words) == 0
    runs = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert runs == [".medpfl-key.json.lock", "medpfl-key.json", "o", "o-round-0", "o-round-2"]
    assert sorted(p.name for p in (tmp_path / "runs" / "o" / "share").iterdir()) == [
        "leakage.html", "leakage.json", "leakage.jsonl",
    ]  # fmt: skip
    page = (tmp_path / "runs" / "o" / "share/leakage.html").read_text()
    assert page.count("<svg") == 2
    assert "<img" not in page
    assert "trained, rounds 0, 2" in page
    assert "Checkpoint(" not in page
    assert {
        json.loads(line)["round"] for line in (tmp_path / "runs/o/share/leakage.jsonl").read_text().splitlines()
    } == {
        0,
        2,
    }
    before = (tmp_path / "runs" / "o-round-0" / "share/findings.jsonl").read_bytes()
    assert main(words) == 0
    assert (tmp_path / "runs" / "o-round-0" / "share/findings.jsonl").read_bytes() == before
    assert "Among the models of rounds 0, 2, " in capsys.readouterr().out


DIES = """
import os, signal, sys
from medpfl import cli
from medpfl.auditing.player import Player

play, left = Player.__call__, [4]

def dies(self, job):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return play(self, job)

Player.__call__ = dies
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_with_9_in_the_second_round_it_ends_with_the_same_rows(tmp_path, no_pages):
    data = draw_folder(tmp_path / "data", {"a": 6, "b": 6})
    train = ["train", str(data), "--model", "MLP((6,))", "--size", "16", "--rounds", "1", "--batch-size", "2"]
    assert main([*train, "--clients", "2", "--out", str(tmp_path / "t"), "--quiet"]) == 0
    words = ["audit", str(data), "--model", str(tmp_path / "t"), "--size", "16", "--attack", "iDLG(steps=3)", "--quiet"]
    words += ["--images", "2", "--memory", "1e-6", "--rounds", "0,1", "--out"]
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    assert main([*words, str(whole)]) == 0
    process = start(DIES, *words, killed)
    process.join(timeout=600)
    assert process.exitcode == -signal.SIGKILL
    first = (tmp_path / "runs" / "killed-round-0" / "share/findings.jsonl").read_bytes()
    assert not (killed / "share/leakage.jsonl").exists()
    assert main([*words, str(killed)]) == 0
    assert (tmp_path / "runs" / "killed-round-0" / "share/findings.jsonl").read_bytes() == first
    rows = [
        [json.loads(line) for line in (out / "share/leakage.jsonl").read_text().splitlines()] for out in (whole, killed)
    ]
    for row in (*rows[0], *rows[1]):
        assert row.pop("seconds") >= 0
        row.pop("date")
    assert rows[0] == rows[1]
    assert {row["round"] for row in rows[1]} == {0, 1}


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The directory of a small training."""
    out = tmp_path_factory.mktemp("runs") / "t"
    small(out=out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ("0,9", "has no round 9: there are 0, 1, 2, 3"),
        ("0;1", "give round numbers"),
        ("", "give round numbers"),
    ],
)
def test_rounds_that_are_not_there(rounds, message, training):
    with pytest.raises(InputError, match=message):
        flat(leakage, training, some_images(8), rounds_in(rounds), **AUDIT)


@pytest.mark.slow
def test_a_foreign_file_in_the_overview_s_share_is_named_before_any_audit(training, tmp_path):
    (tmp_path / "out/share").mkdir(parents=True)
    (tmp_path / "out/share/patient.jpg").write_text("")
    with pytest.raises(InputError, match=r"may be shared, .* it also holds 'patient.jpg'"):
        flat(leakage, training, some_images(8), [0], out=tmp_path / "out", **AUDIT)
    assert not (tmp_path / "out-round-0").exists()


def test_it_needs_a_training():
    with pytest.raises(InputError, match="--rounds needs a training's directory"):
        flat(leakage, "MLP", some_images(8), [0], **AUDIT)
