"""No patient data leaks through a training: names are marked, and every written byte is searched for marks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medpfl.cli import main
from tests.auditing.test_nothing_leaks import CLASSES, MARK, check, everything, marked  # noqa: F401 (a fixture)

COMMON = [
    "--model",
    "MLP((6,))",
    "--rounds",
    "2",
    "--clients",
    "2",
    "--batch-size",
    "2",
    "--size",
    "16",
    "--holdout",
    "3",
]


@pytest.mark.slow
def test_a_training_of_a_folder(marked, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "runs" / "a"
    assert main(["train", str(marked), *COMMON, "--out", str(out)]) == 0
    content = check(out)
    assert b"class 0: " in content, "classes are numbers"
    keys = json.loads((out.parent / "medpfl-key.json").read_text())
    assert list(CLASSES) in keys["classes"].values()
    shown = capsys.readouterr()
    assert "skipped 4 files that could not be read" in shown.err
    assert MARK not in shown.out
    assert main(["report", str(out)]) == 0
    assert main(["train", str(marked), *COMMON, "--rounds", "3", "--out", str(out)]) == 0
    check(out)


@pytest.mark.slow
def test_no_pixel_is_written(marked, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "runs" / "a"
    assert main(["train", str(marked), *COMMON, "--out", str(out), "--quiet"]) == 0
    assert {p.name for p in out.iterdir()} == {
        ".lock", "run.json", "share", "round-0", "round-1", "round-2",
    }  # fmt: skip
    assert {p.name for p in (out / "share").iterdir()} == {"report.html", "rounds.jsonl", "summary.json"}
    assert {p.name for p in out.glob("round-*/*")} == {"weights.safetensors", "state.safetensors"}
    assert not list(out.rglob("*.png"))
    for state in out.glob("round-*/state.safetensors"):
        assert state.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_users_model_weights_and_other_sets(marked, tmp_path, capsys):  # noqa: F811
    import torch

    place = tmp_path / f"{MARK}-models"
    place.mkdir()
    code = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))\n"
    (place / f"{MARK}_net.py").write_text(code)
    torch.save({"1.weight": torch.rand(2, 256), "1.bias": torch.rand(2)}, place / f"{MARK}.pt")
    model = ["--model", f"{place}/{MARK}_net.py:make", "--weights", str(place / f"{MARK}.pt")]
    sets = ["--validation", str(marked), "--test", str(marked)]
    out = tmp_path / "runs" / "a"
    assert main(["train", str(marked), *COMMON, *model, *sets, "--out", str(out)]) == 0
    check(out)


@pytest.mark.slow
def test_an_interrupted_and_a_failed_training(marked, tmp_path, capsys, monkeypatch, ctrl_c):  # noqa: F811
    from medpfl.training.trainer import Trainer

    def stop(self, number, work):
        ctrl_c()

    out = tmp_path / "runs" / "a"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_closed", stop)
        assert main(["train", str(marked), *COMMON, "--out", str(out)]) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert MARK.encode() not in everything(out)
    assert main(["train", str(marked), *COMMON, "--seed", "1", "--out", str(out)]) == 2
    assert MARK.encode() not in everything(out)
    assert main(["train", str(marked), *COMMON, "--out", str(marked / "run")]) == 2
    assert "lies in the data folder" in capsys.readouterr().err
    assert not (Path(marked) / "run").exists()


@pytest.mark.slow
def test_the_audit_of_its_checkpoint(marked, tmp_path, capsys):  # noqa: F811
    place, out = tmp_path / f"{MARK}-runs" / "t", tmp_path / "runs" / "a"
    assert main(["train", str(marked), *COMMON, "--out", str(place)]) == 0
    words = ["--model", str(place), "--attack", "iDLG(steps=3)", "--size", "16", "--images", "2"]
    assert main(["audit", str(marked), *words, "--out", str(out)]) == 0
    check(out)
    assert MARK.encode() not in everything(place)
