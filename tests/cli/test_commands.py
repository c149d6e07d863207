"""The command line: the input it accepts, its messages, and its exit status."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from medpfl import ThreatModel, cli
from medpfl.cli import asked, commands
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.options import options_in
from medpfl.core.experiments.settings import Settings
from medpfl.core.spec import summary
from medpfl.judging.types import Cell, Union

TINY = ["--model", "MLP((6,))", "--attack", "iDLG(steps=3)", "--images", "4", "--size", "16"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys, monkeypatch) -> Run:
    """Call the command line; return its status and its output on both streams, as on a terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("medpfl.core.messages.may_show", lambda stream: True)

    def call(*words) -> tuple[int, str, str]:
        status = cli.main([str(word) for word in words])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out
        return status, shown.out, shown.err

    return call


@pytest.fixture
def refused(run) -> Callable[..., str]:
    """Call the command line with bad input; expect status 2 and one message, on the error stream only."""

    def call(*words) -> str:
        status, out, err = run(*words)
        assert (status, out) == (2, "")
        assert err.count("medpfl: error: ") == 1
        return err

    return call


def draw(path: Path, seed: int = 0) -> Path:
    coarse = (np.random.default_rng(seed).random((4, 4)) * 255).astype("uint8")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((24, 24), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    return draw_all(tmp_path / "data")


def draw_all(path: Path) -> Path:
    for i in range(10):
        draw(path / ("benign" if i % 2 else "malignant") / f"{i}.png", i)
    return path


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "share/findings.jsonl").read_text().splitlines()]


# --- audit ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_audit_prints_the_table_the_verdict_and_the_pages(run, folder, tmp_path):
    out = tmp_path / "runs" / "a"
    words = ["--model", "LeNet('idlg')", "--attack", "iDLG(steps=25)", "--images", "3", "--size", "16"]
    status, shown, err = run("audit", folder, *words, "--defense", "LaplaceNoise(scale=0.01)", "--out", out)
    assert status == 0
    opening, announced = err.splitlines()
    assert opening.startswith(f"audit of LeNet('idlg') with {folder}: 3 images, attack iDLG(steps=25), defense Laplace")
    assert re.fullmatch(r"9 reconstructions and 3 controls, by 1 attack in 4 jobs, in about \d+ s", announced)
    table = shown.partition("Without a defense")[0]
    assert "iDLG(steps=25)" in table
    assert "LaplaceNoise(scale=0.01)" in table
    assert "no defense" in table
    assert "Without a defense, a curious server reconstructed 3 of 3 images" in shown
    assert shown.endswith(
        f"wrote {out}/share/report.html\nwrote {out}/private/report-with-images.html\n"
        f"may be shared: {out}/share (no image); must stay: {out}/private (patients' images)\n"
    )
    assert "\x1b" not in shown, "no color codes where nobody sees colors"
    summary_of = json.loads((out / "share/summary.json").read_text())
    assert [c["defense"] for c in summary_of] == ["NoDefense()", *["LaplaceNoise(scale=0.01)"] * 2]
    assert [c["knows_defense"] for c in summary_of] == [None, False, True]
    assert "iDLG(steps=25), naive" in table
    assert "1 defense was tested against two attackers" in shown


@pytest.mark.slow
def test_quiet_says_the_verdict_only(run, folder):
    status, shown, err = run("audit", folder, *TINY, "--quiet")
    assert (status, err) == (0, "")
    assert len(shown.splitlines()) == 2
    assert shown.startswith("Without a defense")


@pytest.mark.slow
def test_without_out_nothing_is_written(run, folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("audit", folder, *TINY)[0] == 0
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_options_may_be_spelled_with_underscores_and_equals_signs(run, folder, tmp_path):
    out = tmp_path / "runs" / "a"
    dashes = ["--batch-size", "2", "--learning-rate", "0.3", "--algorithm", "FedAvg", "--local-images", "4"]
    assert run("audit", folder, *TINY, *dashes, "--out", out)[0] == 0
    before = rows_of(out)
    same = ["--batch_size=2", "--learning_rate=0.3", "--algorithm=FedAvg", "--local_images", "4", f"--out={out}"]
    assert run("audit", *TINY, *same, folder)[0] == 0
    assert rows_of(out) == before, "the same experiment, continued"
    assert before[0]["plan"] == (
        "Plan(algorithm='FedAvg', batch_size=2, local_images=4, learning_rate=0.3, mode='train')"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_repeated_options_keep_their_order(run, folder, tmp_path):
    out = tmp_path / "runs" / "a"
    words = ["--model", "MLP((6,))", "--images", "2", "--size", "16", "--out", out]
    words += ["--attack", "DLG(steps=2)", "--defense=GaussianNoise", "--attack=iDLG(steps=2)", "--grant", "labels"]
    words += ["--defense", "LaplaceNoise(scale=lin(0.1, 0.2, 2)) | GaussianNoise(scale=0.5)", "--grant", "defense"]
    assert run("audit", folder, *words)[0] == 0
    cells = [(c["attack"], c["defense"]) for c in json.loads((out / "share/summary.json").read_text())]
    composed = [f"LaplaceNoise(scale={s}) | GaussianNoise(scale=0.5)" for s in (0.1, 0.2)]
    defenses = ["NoDefense()", "GaussianNoise(scale=0.01)", *composed]
    assert cells == [(a, d) for d in defenses for a in ("DLG(steps=2)", "iDLG(steps=2)")]
    assert rows_of(out)[-1]["grants"] == ["labels", "defense"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_a_defense_is_known_unless_that_is_withheld(run, folder, tmp_path):
    words = ["audit", folder, *TINY, "--defense", "LaplaceNoise(scale=50.0)", "--grant", "labels"]
    told, not_told = ["labels", "defense"], ["labels"]
    ways = {"both": ([], [not_told, told]), "naive": (["--naive"], [not_told]), "told": (["--grant=defense"], [told])}
    for name, (more, grants) in ways.items():
        assert run(*words, *more, "--out", tmp_path / "runs" / name)[0] == 0
        defended = [row for row in rows_of(tmp_path / "runs" / name) if row["defense"] != "NoDefense()"]
        assert [list(g) for g in dict.fromkeys(tuple(row["grants"]) for row in defended)] == grants


@pytest.mark.slow
def test_what_is_spent_is_said(run, folder):
    words = ["audit", folder, *TINY, "--defense", "DPSGD(noise=2.0)", "--sampling", "poisson", "--local-images", "2"]
    status, shown, _ = run(*words, "--delta", "0.001", "--naive")
    assert status == 0
    (line,) = [line for line in shown.splitlines() if ": epsilon " in line]
    assert line.startswith("DPSGD(clip=1.0, noise=2.0): epsilon ")
    assert "(PRV)" in line and "(PLD) at delta 0.001, for an image, over 1 round with poisson sampling" in line  # noqa: PT018


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_secure_aggregation_is_audited_with_several_clients(run, folder, tmp_path):
    words = ["audit", folder, *TINY, "--images=4", "--clients", "2", "--defense", "SecAggPlus", "--grant=defense"]
    assert run(*words, "--out", tmp_path / "runs" / "a")[0] == 0
    controls = {(row["defense"], row["control"]) for row in rows_of(tmp_path / "runs" / "a")}
    assert controls == {
        ("NoDefense()", "random-update"), ("NoDefense()", ""),
        ("SecAggPlus(threshold=2)", "masked-vector"), ("SecAggPlus(threshold=2)", ""),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--defense=LaplaceNoise(scale=-1)"], "scale is -1: it must be a number above 0"),
        (["--defense=DPSGD", "--delta=2"], "--delta is 2.0"),
        (["--defense=DPSGD(noise=0)"], "noise is 0"),
        (["--defense=TopK(keep=1.5)"], "keep is 1.5: it must be above 0 and at most 1"),
        (["--defense=SecAggPlus"], "--clients 2"),
        (["--defense=SecAggPlus(threshold=3, dropouts=2)", "--clients=4"], "the round is lost"),
        (["--defense=DPSGD", "--model=ResNet(18)"], "batch norm in train mode mixes the images"),
    ],
)
def test_what_a_defense_cannot_do_is_said(run, folder, words, message):
    status, _, error = run("audit", folder, *TINY, *words)
    assert (status, message in error) == (2, True), error


def test_every_option_reaches_the_audit(run, monkeypatch, tmp_path):
    """Each option on the command line arrives in its group at `audit`."""
    got = {}

    class Empty:
        summary, settings, pages, classes = (), Settings(), (), ()

        def verdict(self):
            return ("a", "b")

    class Case:
        def __init__(self, **options):
            got.update(options)

        def report(self):
            return Empty()

    monkeypatch.setattr("medpfl.auditing.run.AuditCase", Case)
    monkeypatch.setattr(asked, "check_words", lambda **_: None)  # these parts do not exist
    given = {
        "model": "M", "weights": "w", "images": 7, "draws": 2, "size": 20, "fit": "squash",
        "channels": 3, "partition": "IID(clients=2)", "clients": 4, "delta": 0.001, "seed": 5,
        "memory": 0.5, "minutes": 3.0, "device": "cuda", "tolerance": 0.3, "out": str(tmp_path / "o"),
        "algorithm": "FedAvg", "batch_size": 2, "local_images": 6, "epochs": 3, "learning_rate": 0.5, "momentum": 0.25,
        "weight_decay": 0.125, "mode": "eval", "sampling": "poisson", "loss": "cross_entropy", "label_smoothing": 0.1,
        "dampening": 0.0, "title": "T", "site": "S", "contact": "C", "alias": "A", "engine": "ray", "workers": 3,
        "threads": 2,
    }  # fmt: skip
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    lists = ["--attack=A", "--attack=B", "--defense=C", "--grant=labels", "--no-gray", "--sends", "buffers"]
    switches = ("naive", "iterates", "best_match", "isolate", "force", "nesterov", "numbers_only")
    flags = [f"--{name.replace('_', '-')}" for name in switches]
    assert run("audit", "place", *words, *lists, *flags, "--quiet")[0] == 0
    groups = [got.pop(name) for name in ("victims", "plan", "criteria", "run")]
    assert groups[1].sends == ("buffers",)
    assert got.pop("threat") == ThreatModel(("labels",), naive=True, gray=False)
    arrived = {name: value for group in groups for name, value in vars(group).items()} | got
    own = {"data": "place", "attacks": ["A", "B"], "defenses": ["C"], "sends": ("buffers",), "progress": False}
    assert arrived == given | own | dict.fromkeys(switches[1:], True)
    others = {"data", "attack", "defense", "grant", "gray", "sends", "rounds", "realism", "truth", "progress"}
    assert {*given, *switches, *others} == set(options_in(Experiment)), "none forgotten"


@pytest.mark.parametrize(("words", "isolate"), [([], None), (["--isolate"], True), (["--no-isolate"], False)])
def test_isolation_is_asked_for_refused_or_left_open(run, folder, words, isolate):
    text = run("audit", folder, *TINY, *words, "--print-config")[1]
    assert yaml.safe_load(text)["isolate"] is isolate


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize(
    ("words", "sends"),
    [
        ([], ("num_samples", "buffers")),
        (["--sends=num_samples"], ("num_samples",)),
        (["--sends", "buffers", "--sends", "num_samples"], ("buffers", "num_samples")),
        (["--sends", "nothing"], ()),
    ],
)
def test_what_travels_beside_the_update(run, folder, tmp_path, words, sends):
    from medpfl import Plan

    out = tmp_path / "runs" / "a"
    assert run("audit", folder, *TINY, *words, "--out", out)[0] == 0
    assert {row["plan"] for row in rows_of(out)} == {repr(Plan(sends=sends))}
    text = run("audit", folder, *TINY, *words, "--print-config")[1]
    assert yaml.safe_load(text)["sends"] == list(sends)


def test_something_else_beside_the_update(refused, folder):
    err = refused("audit", folder, *TINY, "--sends", "labels")
    assert "--sends" in err
    assert "num_samples, buffers" in err
    assert len(err.splitlines()) == 1


def test_the_default_is_every_attack_that_applies_on_the_samples():
    assert (Experiment().data, Experiment().attack) == ("samples", [])


# --- YAML -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_a_yaml_file_says_what_the_options_say(run, folder, tmp_path):
    out, path = tmp_path / "runs" / "a", tmp_path / "experiment.yaml"
    words = ["--attack", "DLG(steps=2)", "--attack", "iDLG(steps=2)", "--defense", "LaplaceNoise", "--batch-size", "2"]
    common = ["--model", "MLP((6,))", "--images", "4", "--size", "16"]
    assert run("audit", folder, *common, *words, "--out", out)[0] == 0
    before = rows_of(out)
    path.write_text(
        yaml.safe_dump(
            {
                "data": str(folder), "model": "MLP((6,))", "images": 4, "size": 16, "batch_size": 2,
                "attack": ["DLG(steps=2)", "iDLG(steps=2)"], "defense": ["LaplaceNoise"], "out": str(out),
            }
        )
    )  # fmt: skip
    assert run("audit", "--config", path)[0] == 0
    assert rows_of(out) == before
    for words in (["--seed", "3", "--config", path], [f"--config={path}", "--seed", "3"]):
        err = run("audit", *words)[2]
        assert "holds another audit (other weights, seed)" in err, "an option overrides the file, in any order"
    assert "no folder or record '/nowhere/at/all'" in run("audit", "/nowhere/at/all", "--config", path)[2]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_a_printed_config_is_accepted(run, folder, tmp_path):
    words = ["audit", folder, *TINY, "--defense", "LaplaceNoise", "--batch_size", "2", "--out", tmp_path / "runs" / "a"]
    for flag in ("--print-config", "--print_config"):
        status, text, err = run(*words, flag)
        assert (status, err) == (0, "")
    assert not (tmp_path / "runs").exists(), "nothing is run"
    (tmp_path / "printed.yaml").write_text(text)
    assert run(*words)[0] == 0
    before = rows_of(tmp_path / "runs" / "a")
    assert run("audit", "--config", tmp_path / "printed.yaml")[0] == 0
    assert rows_of(tmp_path / "runs" / "a") == before
    again = run("audit", "--config", tmp_path / "printed.yaml", "--print-config")[1]
    assert again == text
    assert set(options_in(Experiment)) - {"progress"} <= set(yaml.safe_load(text))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagse: 3\n", "there is no option 'imagse'; did you mean 'images'?"),
        ("images: [3]\n", "--images is [3]: it must be a whole number"),
        ("images: 0\n", "--images is 0"),
        ("attack: iDLG\n", "--attack is iDLG: it must be a list"),
        ("- 1\n", "needs one line for each option"),
        ("a: b: c\n", "cannot be read as YAML"),
    ],
)
def test_a_yaml_file_that_is_wrong(refused, tmp_path, text, message):
    wrong, right = tmp_path / "wrong.yaml", tmp_path / "right.yaml"
    wrong.write_text(text)
    right.write_text("seed: 3\n")
    err = refused("audit", "--config", wrong)
    assert message in err
    assert f"in '{wrong}': " in err
    err = refused("audit", "--config", right, f"--config={wrong}", "--seed", "4")
    assert f"'{wrong}': " in err
    assert message in err


@pytest.mark.slow
def test_a_yaml_file_is_not_blamed_for_an_option(refused, tmp_path):
    right = tmp_path / "right.yaml"
    right.write_text("images: 3\n")
    for words, message in ((["--images", "0"], "--images is 0"), (["--imagse", "3"], "there is no option '--imagse'")):
        err = refused("audit", "--config", right, *words)
        assert message in err
        assert "right.yaml" not in err


def test_no_yaml_file(refused, tmp_path):
    missing = tmp_path / "nowhere.yaml"
    assert f"in '{missing}': there is no such file" in refused("audit", "--config", missing)


# --- help, list, demo, report ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_help_names_every_command_and_option(run):
    status, text, _ = run("--help")
    assert status == 0
    assert all(command in text for command in ("audit", "demo", "list", "report"))
    status, text, _ = run("audit", "--help")
    assert status == 0
    for name, entry in options_in(Experiment).items():
        assert name in ("data", "progress") or f"--{name.replace('_', '-')}" in text
        assert entry.help.partition(" ")[0] in text
    for option in ("--out", "--force", "--quiet", "--config", "--print"):
        assert option in text
    for command in ("demo", "list", "report"):
        status, text, _ = run(command, "--help")
        assert status == 0
        assert "usage: medpfl" in text


def test_no_command_shows_the_help(run):
    status, text, _ = run()
    assert status == 2
    assert "audit a folder of medical images" in text


def test_version(run):
    from importlib.metadata import version

    assert run("--version") == (0, f"medpfl {version('medpfl')}\n", "")


@pytest.mark.parametrize("role", ["attacks", "defenses", "models", "metrics", "data"])
def test_list_names_every_member_with_its_line(run, role):
    status, text, _ = run("list")
    own = run("list", role)[1]
    package = import_module(f"medpfl.{role}")
    assert status == 0
    assert role.capitalize() in text
    for name in package.__all__:
        line = summary(getattr(package, name))
        assert line
        found = [shown for shown in own.splitlines() if shown.split()[:1] == [name]]
        assert len(found) == 1
        assert found[0].split(maxsplit=1)[1].strip() == line
        assert found[0].strip() in [shown.strip() for shown in text.splitlines()] or line in text
    others = [n for r in ("attacks", "models") if r != role for n in import_module(f"medpfl.{r}").__all__]
    assert not [n for n in others if f"  {n} " in own]


@pytest.mark.slow
def test_list_of_something_else(refused):
    assert "there is no role or part 'atacks'; did you mean 'attacks'?" in refused("list", "atacks")
    assert "did you mean 'TopK'?" in refused("list", "TopKs")


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("iDLG", ["iDLG(steps=1000, restarts=1, ", "arXiv:2001.02610", "Needs: the update, the plan, the model."]),
        ("TopK", ["TopK(keep=0.1, ", "scope: "]),
        ("LBFGS", ["LBFGS(history=", "Nocedal", "patience:"]),
        ("ssim", ["Wang et al. 2004"]),
        ("Samples", ["Samples(size=32"]),
    ],
)
def test_list_explains_a_part(run, name, texts):
    status, text, _ = run("list", name)
    assert status == 0
    assert all(expected in text for expected in texts)


@pytest.mark.slow
def test_demo_audits_what_it_says(run, monkeypatch, tmp_path):
    small = commands.DEMO.having(attack=["iDLG(steps=3)"], images=3, size=16)
    monkeypatch.setattr(commands, "DEMO", small)
    out = tmp_path / "runs" / "demo"
    status, shown, _ = run("demo", "--out", out)
    assert status == 0
    assert "LaplaceNoise(scale=0.01)" in shown
    assert (out / "share/report.html").is_file()
    assert {row["data"] for row in rows_of(out)} == {"Samples(size=16)"}
    status, shown, _ = run("demo", "--images", 2)
    assert status == 0
    assert "none of 2 images" in shown


def test_the_real_demo_can_be_built():
    from medpfl.auditing.victims import draw_victims
    from medpfl.inputs.parts import attacks_of, data_of, defenses_of, model_of, partition_of

    demo = commands.DEMO
    assert len(attacks_of(demo.attack)) == len(demo.attack) > 0
    assert len(defenses_of(demo.defense)) == len(demo.defense) + 1 > 1, "with and without a defense"
    found = data_of(demo.data, demo.victims)
    assert demo.data == "samples", "offline"
    model_of(demo.model).build(found.images.shape, len(found.images.classes), 0)
    victims = draw_victims(
        found.images, demo.victims.images, 1, partition_of(demo.victims.partition), torch.Generator()
    )
    assert len(victims) == demo.victims.images


@pytest.mark.slow
def test_report_makes_the_same_pages(run, folder, tmp_path, charts):
    out = tmp_path / "runs" / "a"
    first = run("audit", folder, *TINY, "--defense", "LaplaceNoise", "--out", out)[1]
    pages = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    status, shown, _ = run("report", out)
    assert (status, shown) == (0, first)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == pages
    (out / "share/report.html").unlink()
    assert run("report", out, "--quiet")[0] == 0
    assert (out / "share/report.html").read_bytes() == pages[out / "share/report.html"]


def test_report_of_no_run(refused, tmp_path):
    assert "is not a run directory" in refused("report", tmp_path)
    assert "the run directory" in refused("report")


# --- wrong words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adit"], "there is no command 'adit'; did you mean 'audit'?"),
        (["nothing"], "there is no command 'nothing'; known: audit, "),
        (["audit", "--imagse", "3"], "there is no option '--imagse'; did you mean '--images'?"),
        (["audit", "--image", "3"], "there is no option '--image'; did you mean '--images'?"),
        (["audit", "--batchsize=3"], "there is no option '--batchsize=3'; did you mean '--batch-size'?"),
        (["audit", "a", "b"], "'b' is an unexpected extra argument"),
        (["audit", "--images", "many"], "--images is many: it must be a whole number"),
        (["audit", "--images", "1.5"], "--images is 1.5: it must be a whole number"),
        (["audit", "--images", "0"], "--images is 0: it must be a whole number, at least 1 and at most 1000000"),
        (["audit", "--batch-size", "-2"], "--batch-size is -2"),
        (["audit", "--learning_rate", "0"], "--learning-rate is 0"),
        (["audit", "--memory", "lots"], "--memory is lots: it must be a number"),
        (["audit", "--fit", "stretch"], "--fit is stretch: it must be one of crop, squash"),
        (["audit", "--channels", "2"], "--channels is 2: it must be one of 1, 3"),
        (["audit", "--images"], "--images"),
        (["audit", "--attack"], "--attack needs a value"),
        (["audit", "--out"], "--out"),
        (["audit", "--quiet=3"], "--quiet takes no value, but '3' was given"),
        (["demo", "--attack", "DLG"], "there is no option '--attack'; "),
        (["demo", "--imags", "3"], "there is no option '--imags'; did you mean '--images'?"),
        (["list", "--jsn"], "there is no option '--jsn'; did you mean '--json'?"),
        (["train", "--images", "3"], "did you mean '--local-images'?; 'medpfl train --help' lists the options"),
        (["report", "a", "b"], "'b' is an unexpected extra argument"),
        (["--nonsense"], "there is no option '--nonsense'"),
    ],
)
def test_what_is_not_understood(refused, words, message):
    err = refused(*words)
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attack", "iDGL"], "there is no attack 'iDGL'; did you mean 'iDLG'?"),
        (["--attack", "iDLG(stesp=3)"], "attack 'iDLG' has no argument 'stesp'; did you mean 'steps'?"),
        (["--attack", "iDLG(steps="], "is not a spec"),
        (["--attack", "iDLG(steps=__import__('os'))"], "there is no part of attack iDLG '__import__'"),
        (["--defense", "LaplaceNoise(scale=__import__('os'))"], "'__import__('os')' is not a literal"),
        (["--attack", ""], "is not a spec"),
        (["--defense", "LaplaceNose"], "there is no defense 'LaplaceNose'; did you mean 'LaplaceNoise'?"),
        (["--defense", "LaplaceNoise(scale=geom(0, 1, 3))"], "is not a sweep"),
        (["--defense", "LaplaceNoise(scale=-1)"], "scale is -1: it must be a number above 0"),
        (["--model", "LeNett"], "there is no model 'LeNett'; did you mean 'LeNet'?"),
        (["--model", "LeNet('idgl')"], "did you mean 'idlg'?"),
        (
            ["--model", "runs/train/round-5"],
            "model 'runs/train/round-5': this training or round directory does not exist",
        ),
        (["--model", "nowhere.py:make"], "there is no model file 'nowhere.py'"),
        (["--model", "nowhere.py"], "nowhere.py:make_model"),
        (["--model", "no.such.module:Net"], "importing 'no.such.module' failed"),
        (["--grant", "label"], "there is no grant 'label'; did you mean 'labels'?"),
        (["--partition", "Dirichlt"], "there is no partition 'Dirichlt'; did you mean 'Dirichlet'?"),
        (["--partition", "IID(clients=99)"], "more clients (99) than images (10)"),
        (["--weights", "nowhere.pt"], "there is no weights file 'nowhere.pt'"),
        (["--truth", "x"], "truth goes with a record"),
        (["--device", "gpu"], "device 'gpu' cannot be used here"),
        (["--images", "11"], "--images is 11, but this data set has 10: attack fewer images"),
        (["--batch-size", "11", "--images", "11"], "an update holds 11 images, but this data set has 10"),
        (["--batch-size", "5", "--images", "4"], "--images is 4, but one update holds 5: attack more images"),
        (["--local-images", "4"], "need algorithm FedAvg"),
        (["--sampling", "poisson", "--local-images", "3", "--batch-size", "2"], "must be a multiple of batch_size"),
        (["--loss", "dice", "--label-smoothing", "0.1"], "label_smoothing belongs to the loss cross_entropy"),
        (["--size", "10"], "SSIM needs images of 11 x 11 pixels or more"),
        (["--size", "4"], "size"),
    ],
)
def test_what_cannot_be_audited(refused, folder, tmp_path, words, message):
    options = ["--attack", "iDLG(steps=3)"] if "--attack" not in words else []
    size = ["--size", "16"] if "--size" not in words else []
    images = ["--images", "4"] if "--images" not in words else []
    err = refused("audit", folder, *options, *size, *images, *words, "--out", tmp_path / "runs" / "a")
    assert message in err
    assert not (tmp_path / "runs").exists(), "nothing was written"


# --- data that is bad -----------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """Return a PNG file that claims a given size, and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture
def bad_files(folder) -> dict[str, str]:
    """Create unreadable files; return them with their messages."""
    whole = draw(folder / "benign" / "x.png", 77).read_bytes()
    (folder / "benign" / "x.png").unlink()
    contents = {
        "truncated.png": (whole[:-80], "truncated"),
        "text.png": (b"no image at all", "not an image"),
        "bomb.png": (png(60_000, 60_000), "pixels"),
        "empty.png": (b"", "empty file"),
        "none.png": (png(0, 7), ""),
    }
    for name, (content, _) in contents.items():
        (folder / "benign" / name).write_bytes(content)
    return {name: why for name, (_, why) in contents.items()}


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_unreadable_images_are_named_and_skipped_with_a_count(run, folder, tmp_path, bad_files, quiet):
    out = tmp_path / "runs" / "a"
    status, shown, err = run("audit", folder, *TINY, "--images", "10", "--out", out, *quiet)
    assert status == 0
    assert "skipped 5 files that could not be read:" in err
    for name, why in bad_files.items():
        (line,) = [line for line in err.splitlines() if name in line]
        assert line.startswith(f"  benign/{name}: ")
        assert why in line
    assert quiet or "Skipped 5 files that could not be read." in shown
    assert sum(row["control"] == "" for row in rows_of(out)) == 10, "all others were attacked"
    assert json.loads((out / "run.json").read_text())["settings"]["data"]["skipped"] == 5
    assert not [name for name in bad_files if name.encode() in (out / "share/report.html").read_bytes()]


def test_all_images_bad(refused, tmp_path, folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"junk")
    err = refused("audit", folder, *TINY)
    assert "could be read: benign/1.png: not an image; " in err
    assert "and 7 more" in err


@pytest.mark.slow
def test_no_folder_and_no_class_folders(refused, tmp_path):
    assert f"no folder or record '{tmp_path}/nowhere' (the working directory is '" in refused(
        "audit", tmp_path / "nowhere", *TINY
    )
    assert "no folder or record 'sampels' here; did you mean 'samples'?" in refused("audit", "sampels", *TINY)
    draw(tmp_path / "loose" / "1.png")
    err = refused("audit", tmp_path / "loose", *TINY)
    assert "has no class folders" in err
    assert "1 image(s) lie directly in it" in err
    (tmp_path / "empty" / "benign").mkdir(parents=True)
    assert "no images (" in refused("audit", tmp_path / "empty", *TINY)
    assert "cannot read the file" in refused("audit", tmp_path / "loose" / "1.png", *TINY)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_run_directories_are_no_class_folders(run, refused, folder, tmp_path):
    runs = tmp_path / "runs"
    assert run("audit", folder, *TINY, "--out", runs / "a")[0] == 0
    for data in (runs, runs / "a", f"ImageFolder('{runs}')"):
        err = refused("audit", data, *TINY)
        assert f"'{runs}/a' is a run directory, and its pictures are results, not data" in err
        assert f"medpfl report {runs}/a" in err
    (runs / "a").rename(folder / "a")
    assert "is a run directory, and its pictures are results, not data" in refused("audit", folder, *TINY)


# --- models and weights that are bad --------------------------------------------------------------------------


MODELS = """
import torch
from torch import nn

def good():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))

def other_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(99, 2))

def wrong_shape():
    return nn.Flatten(0)

def a_map():
    return nn.Conv2d(1, 2, 3)

def one_output():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 1))

def not_finite():
    network = good()
    nn.init.constant_(network[1].weight, float("nan"))
    return network

def raises():
    raise KeyError("nothing")

def no_module():
    return 3

def needs(argument):
    return good()
"""


@pytest.fixture
def models(tmp_path) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path / "models.py"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("other_size", "the model does not take images of shape (1, 1, 16, 16)"),
        ("wrong_shape", "the model has no trainable parameter"),
        ("a_map", "the model must return logits of shape (1, classes), but it returned (1, 2, 14, 14)"),
        ("one_output", "the model has 1 outputs for 2 classes"),
        ("not_finite", "'1.weight' holds values that are not finite"),
        ("raises", "model 'raises' failed: KeyError: 'nothing'"),
        ("no_module", "model 'no_module' returned a int, not a torch.nn.Module"),
        ("needs", "model 'needs'"),
        ("god", "did you mean 'good'?"),
        ("good(1)", "model 'good'"),
        ("good(x=torch)", "write a name, or a name with literal arguments"),
    ],
)
def test_a_model_that_does_not_fit(refused, folder, models, call, message):
    assert message in refused("audit", folder, *TINY[2:], "--model", f"{models}:{call}")


FITS = """
from torch import nn

def gray():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))

def color():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))

def large():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 62 * 62, 2))

def both():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 2))

def none():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 2))
"""


@pytest.mark.parametrize(
    ("call", "channels", "layer", "remedy"),
    [
        ("gray", "3", "'0' (Conv2d)", ". It takes images with --channels 1;"),
        ("color", "1", "'0' (Conv2d)", ". It takes images with --channels 3;"),
        ("large", "1", "'2' (Linear)", ". It takes images with --size 64;"),
        ("both", "1", "'0' (Conv2d)", ". It takes images with --channels 3 --size 28;"),
        ("none", "1", "'1' (Linear)", "'1' (Linear);"),
    ],
)
def test_a_model_for_other_images_names_its_layer_and_the_option(
    refused, folder, tmp_path, call, channels, layer, remedy
):
    (tmp_path / "fits.py").write_text(FITS)
    err = refused("audit", folder, *TINY[2:], "--model", f"{tmp_path}/fits.py:{call}", "--channels", channels)
    assert f"; it fails in layer {layer}" in err
    assert remedy in err.strip().splitlines()[-1] + ";"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--plan", "FedAvg"],
            "the settings of a plan are options of their own, such as --algorithm",
        ),
        (["--plan=Plan(batch_size=4)"], "no option '--plan=Plan(batch_size=4)': the settings of a plan are options"),
        (["--algorithm", "fedavg"], "it must be one of FedSGD, FedAvg; did you mean 'FedAvg'?"),
        (["--mode", "evaluate"], "it must be one of train, eval; did you mean 'eval'?"),
        (["--mode", "x"], "it must be one of train, eval; 'medpfl audit --help'"),
        (["--sends", "buffer"], "did you mean 'buffers'?"),
    ],
)
def test_a_wrong_setting_of_the_plan_gets_the_nearest_right_one_and_an_example(refused, folder, words, told):
    assert told in refused("audit", folder, *words)


def test_a_file_that_nests_the_plan_gets_an_example(refused, folder, tmp_path):
    (tmp_path / "c.yaml").write_text("plan:\n  batch_size: 4\n")
    assert "the settings of a plan are options of their own" in refused(
        "audit", folder, "--config", tmp_path / "c.yaml"
    )


@pytest.mark.slow
@pytest.mark.parametrize("channels", ["1", "3"])
def test_gray_images_read_in_color_are_noticed(run, folder, channels):
    out = run("audit", folder, *TINY, "--channels", channels)[1]
    assert ("All images are gray, but were read with three color channels" in " ".join(out.split())) == (
        channels == "3"
    )


def test_a_model_file_that_is_broken(refused, folder, models):
    models.write_text("import nonsense_that_is_not_installed")
    err = refused("audit", folder, *TINY[2:], "--model", f"{models}:good")
    assert f"importing '{models}' failed: ModuleNotFoundError" in err


@pytest.mark.slow
def test_a_users_model_and_weights(run, refused, folder, models, tmp_path):
    path = tmp_path / "weights.pt"
    own = [*TINY[2:], "--model", f"{models}:good", "--weights", path]
    torch.save({"1.weight": torch.rand(2, 256), "1.bias": torch.rand(2)}, path)
    assert run("audit", folder, *own)[0] == 0
    torch.save({"1.weight": torch.rand(2, 99), "bias": torch.rand(2)}, path)
    err = refused("audit", folder, *own)
    assert "do not fit the model" in err
    for line in (
        "1.bias: in the model, not in the file",
        "bias: in the file, not in the model",
        "1.weight: (2, 99) in the file, (2, 256) in the model",
    ):
        assert f"\n  {line}" in err
    torch.save({"1.weight": torch.rand(2, 256) / 0, "1.bias": torch.rand(2)}, path)
    assert "'1.weight' holds values that are not finite" in refused("audit", folder, *own)
    path.write_bytes(b"junk")
    assert "is not a weights file" in refused("audit", folder, *own)
    assert "--draws > 1 re-initializes" in refused("audit", folder, *own[:-2], "--weights", path, "--draws", "2")


# --- records --------------------------------------------------------------------------------------------------


@pytest.fixture
def record(folder, tmp_path) -> Path:
    """Save an update from a client with one image, by a short script; the image lies alone in ``truth``."""
    from medpfl import Batch, Plan, Record, Weights, local_update, prepare
    from medpfl.data import ImageFolder
    from medpfl.models import LeNet

    draw(tmp_path / "truth" / "malignant" / "a.png", 5)
    images = ImageFolder(tmp_path / "truth", size=16).load().images
    network, plan = LeNet("idlg").build((1, 16, 16), 2, seed=4), Plan()
    weights = Weights.of(network)
    sent = local_update(prepare(network, plan), Batch(images, torch.tensor([1])), plan, weights)
    record = Record(sent, plan, weights, image_shape=(1, 16, 16), classes=("benign", "malignant"))
    record.save(tmp_path / "client.record")
    return tmp_path / "client.record"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_a_record_is_audited_with_its_truth(run, record, tmp_path):
    out = tmp_path / "runs" / "a"
    words = ["--truth", record.parent / "truth", "--model", "LeNet('idlg')", "--attack", "iDLG(steps=25)"]
    status, shown, err = run("audit", record, *words, "--out", out)
    assert status == 0
    assert err.startswith(f"audit of LeNet('idlg') with {record}: its images, attack iDLG(steps=25), no defense\n")
    assert "From the recorded update, a curious server reconstructed 1 of 1 image" in shown
    assert [c["defense"] for c in json.loads((out / "share/summary.json").read_text())] == ["NoDefense()", "Recorded()"]
    assert json.loads((out / "run.json").read_text())["settings"]["record"]["difference"] < 1e-5


@pytest.mark.slow
def test_a_record_that_does_not_fit(refused, record, folder):
    words, truth = ["--model", "LeNet('idlg')", "--attack", "iDLG(steps=3)"], record.parent / "truth"
    assert "set --truth to the folder with the images" in refused("audit", record, *words)
    assert "made from 1 image, but --truth holds 10" in refused("audit", record, *words, "--truth", folder)
    assert "no folder or record '/nowhere/at/all'" in refused("audit", record, *words, "--truth", "/nowhere/at/all")
    two = ["--defense", "LaplaceNoise", "--defense", "GaussianNoise"]
    assert "a record was made under one defense" in refused("audit", record, *words, "--truth", truth, *two)
    err = refused("audit", record, "--model", "LeNet('dlg')", *words[2:], "--truth", truth)
    assert "the record does not fit the model:" in err
    assert "6.weight: in the model, not in the record" in err
    record.write_bytes(record.read_bytes()[:-50])
    assert "cannot be read as a record" in refused("audit", record, *words, "--truth", truth)


# --- where results go -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_out_that_cannot_be_made(refused, folder, tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "a", tmp_path / "file" / "a" / "b"):
        assert f"--out '{out}' cannot be created (" in refused("audit", folder, *TINY, "--out", out)
    assert (tmp_path / "file").read_text() == "x"
    assert "lies in the data folder" in refused("audit", folder, *TINY, "--out", folder / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_out_of_another_experiment(run, refused, folder, tmp_path):
    out = tmp_path / "runs" / "a"
    run("audit", folder, *TINY, "--out", out)
    before = rows_of(out)
    err = refused("audit", folder, *TINY, "--images", "6", "--out", out)
    assert "holds another audit (other images): name another --out, or --force to discard it" in err
    assert rows_of(out) == before
    assert run("audit", folder, *TINY, "--images", "6", "--out", out, "--force")[0] == 0
    assert len(rows_of(out)) == 12


def test_a_damaged_key_file(refused, folder, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "medpfl-key.json").write_text("[]")
    assert "medpfl-key.json' is damaged" in refused("audit", folder, *TINY, "--out", tmp_path / "runs" / "a")


MANY = [*TINY[:4], "--images", "3", "--size", "16", "--memory", "1e-6"]
"""Four jobs of one row."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A folder with images, and a finished audit of them in ``runs/whole``."""
    place = tmp_path_factory.mktemp("undisturbed")
    out = place / "runs" / "whole"
    assert cli.main(["audit", str(draw_all(place / "data")), *MANY, "--out", str(out), "--quiet"]) == 0
    return place


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 2, 4, 5, 8, 12])
def test_a_full_disk_costs_nothing_that_is_finished(run, undisturbed, tmp_path, monkeypatch, room):
    """The disk is full after so many files: the rows until then are kept, and the next run completes them."""
    shutil.copytree(undisturbed / "runs", tmp_path / "runs")
    folder, out, calls, fsync = undisturbed / "data", tmp_path / "runs" / "a", [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, shown, err = run("audit", folder, *MANY, "--out", out)
    assert (status, shown) == (2, "")
    assert "medpfl: error: no space left on device" in err
    assert "free some space and repeat the command" in err
    assert not list(out.rglob(".*.json.*")) + list(out.rglob(".*safetensors*")), "no half-written file is left"
    kept = rows_of(out) if (out / "share/findings.jsonl").exists() else []
    monkeypatch.setattr("medpfl.reporting.write_pages", lambda *_: [])
    assert run("audit", folder, *MANY, "--out", out)[0] == 0

    def stripped(rows):
        return [{k: v for k, v in row.items() if k not in ("seconds", "date")} for row in rows]

    assert rows_of(out)[: len(kept)] == kept
    assert stripped(rows_of(out)) == stripped(rows_of(tmp_path / "runs" / "whole"))


def test_a_file_that_may_not_be_written(run, folder, tmp_path, monkeypatch):
    def deny(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/runs/a/run.json")

    monkeypatch.setattr("medpfl.auditing.store.write", deny)
    status, shown, err = run("audit", folder, *TINY, "--out", tmp_path / "runs" / "a")
    assert (status, shown) == (2, "")
    assert "medpfl: error: permission denied: '/runs/a/run.json'" in err


# --- interrupted ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_an_interrupted_audit_ends_with_130_and_continues(run, folder, tmp_path, monkeypatch):
    from medpfl.auditing.player import Player

    out, played, play = tmp_path / "runs" / "a", [], Player.__call__

    def interrupt(self, job):
        played.append(job)
        if len(played) == 3:
            raise KeyboardInterrupt
        return play(self, job)

    many = [*TINY, "--memory", "1e-6"]
    with monkeypatch.context() as patch:
        patch.setattr(Player, "__call__", interrupt)
        status, shown, err = run("audit", folder, *many, "--out", out)
    assert (status, shown) == (130, "")
    assert "medpfl: interrupted; with --out, the same command continues" in err
    kept = rows_of(out)
    assert len(kept) == 2
    assert run("audit", folder, *many, "--out", out)[0] == 0
    assert rows_of(out)[:2] == kept
    assert len(rows_of(out)) == 5


def _hear_interrupts() -> None:
    """Restore the default handler: a shell's background job ignores interrupts, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(folder, tmp_path):
    out = tmp_path / "runs" / "a"
    words = [
        *["--model", "MLP((6,))", "--attack", "iDLG(steps=20)", "--images", "8", "--size", "16"],
        *["--memory", "1e-6", "--quiet"],
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "medpfl.cli", "audit", str(folder), *words, "--out", str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=_hear_interrupts,  # noqa: PLW1509 (no thread runs here)
    )  # fmt: skip
    rows, deadline = out / "share/findings.jsonl", time.monotonic() + 60
    while not (rows.exists() and rows.read_bytes()) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    shown, err = process.communicate(timeout=60)
    assert (process.returncode, shown) == (130, "")
    assert "medpfl: interrupted" in err
    assert "Traceback" not in err
    assert rows_of(out)


# --- the verdict as an exit status ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "asked", "status"),
    [
        (["leaks"], None, 0),
        (["leaks"], "leaks", 3),
        (["leaks"], "inconclusive", 3),
        (["inconclusive"], "leaks", 0),
        (["inconclusive"], "inconclusive", 4),
        (["no leak found by these attacks"], "inconclusive", 0),
        (["leaks", "no leak found by these attacks"], "leaks", 0),  # the control has to leak
        (["leaks", "inconclusive"], "leaks", 0),
        (["leaks", "inconclusive"], "inconclusive", 4),
        (["leaks", "leaks"], "leaks", 3),
        (["leaks", "inconclusive", "leaks"], "inconclusive", 3),
    ],
)
def test_a_pipeline_may_fail_on_the_verdict(run, monkeypatch, verdicts, asked, status):
    names = ("NoDefense()", "A()", "B()")
    cells = [
        Cell(attack="iDLG()", defense=name, union=Union(verdict=verdict))
        for name, verdict in zip(names, verdicts, strict=False)
    ]
    monkeypatch.setattr("medpfl.auditing.run.perform", lambda *_, **__: SimpleNamespace(summary=cells))
    monkeypatch.setattr("medpfl.reporting.terminal.print_audit", lambda *_: None)
    found, out, err = run("audit", *([f"--fail-on={asked}"] if asked else []))
    assert (found, out) == (status, "")
    assert (f"exit status {status} by --fail-on {asked}" in err) is (status != 0)


@pytest.mark.parametrize(
    ("state", "defense", "status"),
    [("recommended", "A()", 0), ("recommended", "B()", 3), ("none", None, 3), ("no limit", None, 3)],
)
def test_a_frontier_fails_on_what_it_recommends(state, defense, status):
    from medpfl.core.verdicts import of_frontier

    words = {"NoDefense()": "leaks", "A()": "no leak found by these attacks", "B()": "leaks", "C()": None}
    points = [{"defense": d, "verdict": v} for d, v in words.items()]
    found = of_frontier(points, {"state": state, "defense": defense})
    assert commands._failed_on("leaks", found) == status
    nothing = of_frontier(points[:2], {"state": "none", "defense": None})
    assert commands._failed_on("inconclusive", nothing) == 4, "what is not recommended is never taken for safe"


def test_fail_on_says_in_the_help_what_the_statuses_are(run, refused):
    for command in ("audit", "frontier"):
        text = " ".join(run(command, "--help")[1].split())
        assert "exit with status 3" in text
        assert "exit with 4" in text
    assert "--fail-on" in refused("audit", "--fail-on", "everything")


# --- how it ends ------------------------------------------------------------------------------------------------

STARTS = [0.0, 0.3, 1.0, 2.5]


@pytest.mark.slow
@pytest.mark.parametrize("wait", STARTS)
def test_an_interruption_of_the_start_is_no_traceback(wait):
    """An interruption during imports is caught too; before MedPFL's first line, Python handles it."""
    first = "import sys; sys.argv[0] = 'medpfl'; import medpfl.cli.interruption; print(flush=True)"
    code = f"{first}; from medpfl.cli import main; sys.exit(main())"
    going = subprocess.Popen(
        [sys.executable, "-c", code, "audit", "--attack", "DLG(steps=100000)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=_hear_interrupts,  # noqa: PLW1509 (no thread runs here)
    )  # fmt: skip
    assert going.stdout is not None
    going.stdout.readline()
    time.sleep(wait)
    going.send_signal(signal.SIGINT)
    _, err = going.communicate(timeout=60)
    assert "Traceback" not in err
    assert going.returncode == 130
    assert err.count("medpfl: interrupted") == 1


def test_an_interrupted_command_cleans_up():
    """It ends workers, and marks rows of changed code."""
    code = (
        "import signal, sys\nsys.argv[0] = 'medpfl'\nfrom medpfl.cli import commands, main\n"
        "def command(*_):\n    try:\n        signal.raise_signal(2)\n    finally:\n        print('cleaned up')\n"
        "commands.RUN['list'] = command\nsys.exit(main(['list', 'metrics']))"
    )
    going = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=_hear_interrupts,  # noqa: PLW1509 (no thread runs here)
    )  # fmt: skip
    shown, err = going.communicate(timeout=60)
    assert (going.returncode, shown) == (130, "cleaned up\n")
    assert err.count("medpfl: interrupted") == 1


@pytest.mark.parametrize(("program", "frozen"), [("medpfl", True), ("script.py", False)])
def test_a_command_ends_without_a_search_for_garbage(program, frozen):
    """A person's own program that imports the package ends as it wants to."""
    code = (
        "import atexit, gc, sys\natexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        f"sys.argv[0] = '{program}'\nimport medpfl.cli"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == f"{frozen}\n"


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error():
    """Whatever the command: this one prints as all do, and imports little."""
    code = (
        "import sys\nfrom rich.console import Console\nfrom medpfl.cli import commands, main\n"
        "commands.RUN['list'] = lambda *_: Console().print('a line') or 0\nsys.exit(main(['list', 'metrics']))"
    )
    going = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert going.stdout is not None
    going.stdout.close()
    going.stdout = None
    assert going.communicate(timeout=60)[1] == ""
    assert going.returncode == 141


def test_a_null_byte_in_a_path(refused, tmp_path):
    assert "null byte" in refused("audit", "--out", f"{tmp_path}/a\0b")
    (tmp_path / "c.yaml").write_text('out: "a\\0b"\n')
    assert "null" in refused("audit", *TINY, "--config", tmp_path / "c.yaml")
