"""``medpfl train``: every option arrives, errors use the command line's names, and a page is written."""

from __future__ import annotations

import signal
import time
from importlib import import_module

import pytest
import yaml

from medpfl import cli
from medpfl.cli import asked
from medpfl.core.experiments.options import options_in
from medpfl.core.experiments.training import Training
from medpfl.training.store import read_rounds
from tests.auditing.audit_cases import draw_folder
from tests.processes import start
from tests.training.training_cases import plainly

TINY = ["--model", "MLP((6,))", "--size", "16", "--clients", "2", "--rounds", "2", "--batch-size", "2"]


@pytest.fixture
def pictures(tmp_path):
    return draw_folder(tmp_path / "data", {"benign": 10, "malignant": 10})


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words):
        status = cli.main([str(word) for word in words])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out
        return status, shown.out, shown.err

    return call


@pytest.mark.slow
def test_a_table_two_sentences_and_a_page(run, pictures, tmp_path, charts):
    out = tmp_path / "runs" / "a"
    status, shown, err = run("train", pictures, *TINY, "--out", out)
    assert (status, err) == (0, "training of MLP((6,)) with your data: 2 rounds of FedAvg, no defense\n")
    assert "on the validation images" in shown
    assert "After 2 rounds without a defense, the model classifies" in shown
    assert f"wrote {out}/share/report.html" in shown
    page = (out / "share/report.html").read_text()
    assert page.count("<svg") == 3
    assert "balanced accuracy" in page
    status, again, _ = run("report", out)
    assert (status, again) == (0, shown)
    assert (out / "share/report.html").read_text() == page, "made from stored rows"
    assert run("train", pictures, *TINY, "--quiet")[1].count("\n") == 2


def test_every_option_arrives(monkeypatch, tmp_path):
    given, real = {}, import_module("medpfl.training.train")
    monkeypatch.setattr(real, "train", lambda model, data, **options: given.update(options, model=model, data=data))
    monkeypatch.setattr("medpfl.reporting.terminal.print_training", lambda *_: None)
    monkeypatch.setattr(asked, "check_words", lambda **_: None)  # these parts do not exist
    words = [
        "folder", "--model=M", "--weights=w", "--defense=A", "--defense=B", "--validation=v", "--test=t", "--holdout=7",
        "--clients=3", "--partition=P", "--rounds=9", "--fraction=0.5", "--algorithm=FedSGD", "--batch-size=8",
        "--learning-rate=0.3", "--decay=0.9", "--momentum=0.1", "--weight-decay=0.01", "--server-momentum=0.2",
        "--sampling=poisson", "--balance", "--augment", "--sends=buffers", "--mode=eval", "--delta=1e-6", "--size=20",
        "--fit=squash", "--channels=3", "--seed=5", "--device=cpu", "--out=o", "--force", "--quiet",
        "--local-images=16", "--engine=inline", "--workers=3", "--threads=2",
        "--title=T", "--site=S", "--contact=C", "--alias=A",
    ]  # fmt: skip
    assert cli.main(["train", *words]) == 0
    plan = given.pop("plan")
    assert (plan.algorithm, plan.batch_size, plan.local_images, plan.epochs) == ("FedSGD", 8, 16, 1)
    assert (plan.learning_rate, plan.momentum, plan.weight_decay) == (0.3, 0.1, 0.01)
    assert (plan.sampling, plan.sends, plan.mode) == ("poisson", ("buffers",), "eval")
    arrived = {name: value for group in ("cohort", "schedule", "run") for name, value in vars(given.pop(group)).items()}
    assert arrived | given == {
        "data": "folder", "model": "M", "weights": "w", "defense": ["A", "B"], "validation": "v", "test": "t",
        "holdout": 7, "clients": 3, "partition": "P", "rounds": 9, "fraction": 0.5, "decay": 0.9,
        "server_momentum": 0.2, "balance": True, "augment": True, "delta": 1e-6, "size": 20, "fit": "squash",
        "channels": 3, "seed": 5, "device": "cpu", "out": "o", "force": True, "progress": False, "memory": 2.0,
        "minutes": 2.0, "engine": "inline", "workers": 3, "threads": 2,
        "isolate": None, "numbers_only": False, "title": "T", "site": "S", "contact": "C", "alias": "A",
    }  # fmt: skip
    others = {"memory", "minutes", "isolate", "numbers_only"}
    assert {*arrived, *given} - others | set(vars(plan)) - {"loss"} == set(options_in(Training))


@pytest.mark.slow
def test_a_yaml_file_says_the_same(run, pictures, tmp_path, no_pages):
    settings = {"data": str(pictures), "model": "MLP((6,))", "size": 16, "clients": 2, "rounds": 2, "batch_size": 2}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({**settings, "defense": ["TopK(keep=0.5)"]}))
    one, other = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    assert run("train", "--config", tmp_path / "t.yaml", "--out", one)[0] == 0
    assert run("train", pictures, *TINY, "--defense", "TopK(keep=0.5)", "--out", other)[0] == 0
    rows = [plainly(list(read_rounds(out / "share/rounds.jsonl"))) for out in (one, other)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--round", "3"], "there is no option '--round'; did you mean '--rounds'?"),
        (["--rounds", "0"], "--rounds is 0: it must be a whole number, at least 1 and at most"),
        (["--rounds", "x"], "--rounds is x: it must be a whole number"),
        (["--fraction", "2"], "--fraction is 2.0: it must be a number above 0 and at most 1"),
        (["--algorithm", "SGD"], "--algorithm is SGD: it must be one of FedSGD, FedAvg"),
        (["--clients", "99"], "more clients (99) than images (16)"),
        (["--defense", "TopK(keep=geom(0.1, 1, 3))"], "is a sweep over 3 defenses"),
        (["--partition", "Dirichlet(alpha=0)"], "alpha=0 must be a number above 0"),
        (["--local-images", "5", "--sampling", "poisson"], "local_images (5) must be a multiple of batch_size (2)"),
        (["--algorithm", "FedSGD", "--epochs", "2"], "FedSGD sends one gradient"),
    ],
)
def test_mistakes_are_said_in_the_words_of_the_command_line(run, pictures, words, message):
    status, shown, err = run("train", pictures, *TINY, *words)
    assert (status, shown) == (2, "")
    assert message in err


def test_help_is_readable(run):
    status, shown, _ = run("train", "--help")
    assert status == 0
    for name, entry in options_in(Training).items():
        assert entry.help[:20] in " ".join(shown.split()), name
    assert "train a model by federated learning" in " ".join(run("--help")[1].split())


SLOW = """
import sys, time
from medpfl import cli
from medpfl.cli import commands
from medpfl.training.trainer import Trainer

play = Trainer._closed

def slow(self, number, work):
    done = play(self, number, work)
    if number == 2:
        time.sleep(60)
    return done

Trainer._closed = slow
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_with_9_in_the_middle_of_a_round_it_ends_with_the_same_rows(run, pictures, tmp_path, no_pages):
    whole, out = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    words = [*TINY, "--rounds", "3", "--defense", "TopK(keep=0.2, feedback=True)", "--server-momentum", "0.5"]
    assert run("train", pictures, *words, "--out", whole)[0] == 0
    process = start(SLOW, "train", pictures, *words, "--out", out)
    deadline = time.monotonic() + 120
    while len(list(read_rounds(out / "share/rounds.jsonl"))) < 2:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (out / ".round-2").mkdir()
    (out / ".round-2" / "weights.safetensors").write_bytes(b"half")
    first = list(read_rounds(out / "share/rounds.jsonl"))
    assert run("train", pictures, *words, "--out", out)[0] == 0
    rows = list(read_rounds(out / "share/rounds.jsonl"))
    assert rows[:2] == first, "what was finished was not done again"
    assert plainly(rows) == plainly(list(read_rounds(whole / "share/rounds.jsonl")))
    for number in range(4):
        files = [p / f"round-{number}" / "weights.safetensors" for p in (whole, out)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert not (out / ".round-2").exists()
