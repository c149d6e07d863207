"""The first line of each command, help by theme, JSON for machines, and the plan of ``--dry-run``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medpfl import cli
from medpfl.cli.help import EXAMPLES, STATUSES, THEMES
from medpfl.cli.machine import print_json
from medpfl.cli.opening import opening
from medpfl.cli.parser import parser_of
from medpfl.cli.words import spelled
from medpfl.core.errors import private
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.inspection import Inspection
from medpfl.core.experiments.recording import Forgetting, Looking, Recording
from medpfl.reproduction.scale import Studies

NAMES = [name for commands in THEMES.values() for name in commands]
SMALL = ["--model", "LeNet('idlg')", "--attack", "iDLG(steps=3)", "--images", "2", "--size", "16"]


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: object) -> tuple[int, str, str]:
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return call


# --- the first line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (Experiment(), "the embedded samples: up to 32 images, analytic attacks, and 2 min of searches, no defense"),
        (Experiment.of(model="m", data="d", truth="t"), "audit of m with d: its images, analytic attacks"),
        (Experiment.of(model="m", data="r/1.safetensors"), "audit of m with r/1.safetensors: its images, analytic"),
        (Experiment.of(batch_size=4, images=8), "8 images, 4 in a batch, analytic attacks"),
        (Experiment.of(attack=[f"A{i}" for i in range(8)]), "attacks A0, A1, A2, A3, A4, A5 and 2 more, no defense"),
        (Experiment.of(model="run", rounds="0,5"), "audit of run, in rounds 0,5 with"),
        (Frontier.of(defense=["LaplaceNoise(scale=geom(0.1, 1, 3))"], seeds=2), "8 trainings with 20 rounds of FedAvg"),
        (Inspection.of(model="m"), "check of m: "),
        (Recording(), "record of an update"),
        (Looking.of(truth="t"), "look at a record and compare it"),
        (Forgetting(), "deletion of the truth files"),
        (Studies.of(experiment=["noise"]), "reproduction of noise, with the data sets in ."),
        (Studies.of(from_="runs/p"), "tables of the reproduction in runs/p, again"),
    ],
)  # fmt: skip
def test_the_first_line_says_what_will_be_done(asked, line):
    assert line in opening(asked).replace("\ue0f0", "").replace("\ue0f1your data\ue0f2", "").replace("\ue0f2", "")


def test_the_first_line_of_a_log_does_not_name_the_data(run, tmp_path):
    (tmp_path / "doe").mkdir()
    status, _, err = run("audit", tmp_path / "doe", *SMALL)
    assert status == 2
    assert err.startswith("audit of LeNet('idlg') with your data: 2 images, attack iDLG(steps=3), no defense\n")
    assert "doe" not in err


def test_the_first_line_comes_before_torch(tmp_path):
    code = """
import builtins, contextlib, io, json, sys
from medpfl import cli
original = builtins.__import__
def watched(name, *rest):
    if name == "torch" or name.startswith("torch."):
        raise SystemExit("torch")
    return original(name, *rest)
builtins.__import__ = watched
first = {}
for name, rest in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        cli.main([name, *rest])
    first[name] = said.getvalue().splitlines()[0]
print(json.dumps(first))
"""
    words = {
        "audit": ["samples"], "check-model": ["LeNet"], "compare": ["a", "b"], "demo": [],
        "evaluate": ["samples"], "forget": [str(tmp_path)], "frontier":
        ["samples", "--defense", "LaplaceNoise(scale=geom(0.1, 1, 3))", "--out", "f"], "inspect": ["r"], "list": [],
        "record": ["a", "b"], "report": ["r"], "reproduce": [], "train": ["samples"],
    }  # fmt: skip
    assert set(words) == set(NAMES)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(words)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for name, first in json.loads(done.stdout).items():
        assert not first.startswith("medpfl: error"), (name, first)
        assert "torch" not in first, (name, first)


# --- help -----------------------------------------------------------------------------------------------------


def test_the_overview_names_each_command_under_a_theme(run):
    status, text, _ = run("--help")
    assert status == 0
    for theme, commands in THEMES.items():
        assert f"\n{theme}:\n" in text
        assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in commands)
    assert all(re.search(rf"^  {status} ", text, re.MULTILINE) for status in STATUSES)
    assert run()[1] == text, "also without any word"


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_a_command_has_examples_themes_and_statuses(run, name):
    status, text, _ = run(name, "--help")
    assert status == 0
    assert text.startswith(f"usage: medpfl {name}")
    for part in ("\nExamples:\n", "\nArguments and options:\n", "\nExit status:\n", "  --json "):
        assert part in text, part
    assert max(map(len, text.partition("Arguments and options")[2].splitlines())) <= 100
    assert "type:" not in text
    assert not re.search(r"typing\.|Optional|NoneType", text)


@pytest.mark.parametrize("name", ["", *NAMES])
def test_examples_can_be_parsed(name):
    import shlex

    for text in EXAMPLES[name]:
        words = shlex.split(text)
        assert words[0] == (name or words[0])
        given = parser_of().parse_args(spelled(words))
        assert given.subcommand == words[0]


def test_choices_and_defaults_are_told(run):
    text = run("audit", "--help")[1]
    assert "--fit crop|squash" in text
    assert "--channels 1|3" in text
    assert "--isolate, --no-isolate" in text
    assert "(default: crop)" in re.sub(r"\s+", " ", text)
    assert "--momentum" in text
    assert "(default: 0.0)" in re.sub(r"\s+", " ", text)


# --- JSON -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_command_takes_json(name):
    own = parser_of()._subcommands_action._name_parser_map[name]
    assert any("--json" in action.option_strings for action in own._actions)


def test_an_error_is_json_too(run):
    status, out, err = run("audit", "/nowhere", "--json")
    assert status == 2
    found = json.loads(out)
    assert found["status"] == 2
    assert found["error"].startswith("there is no folder or record ")
    assert f"medpfl: error: {found['error']}" in err


@pytest.mark.parametrize(
    ("words", "as_json"),
    [
        (["audit", "/nowhere", "--json"], True),
        (["audit", "/nowhere", "--attack", "--json"], False),  # a wrong attack of that name
        (["audit", "/nowhere", "--imges", "3", "--json"], True),  # cannot be parsed
        (["audit", "/nowhere", "--imges", "3", "--attack", "--json"], False),
        (["audit", "/nowhere", "--title=--json"], False),
    ],
)
def test_json_is_asked_for_by_the_option_and_not_by_a_value(run, words, as_json):
    status, out, _ = run(*words)
    assert status == 2
    assert bool(out) is as_json


@pytest.mark.slow
def test_a_file_may_ask_for_json(run, tmp_path):
    (tmp_path / "c.yaml").write_text("json: true\n")
    status, out, _ = run("audit", "/nowhere", "--config", tmp_path / "c.yaml")
    assert (status, json.loads(out)["status"]) == (2, 2)


@pytest.mark.slow
def test_a_list_is_json(run):
    found = json.loads(run("list", "--json")[1])
    assert set(found["roles"]) == {"attacks", "defenses", "models", "metrics", "data"}
    assert found["roles"]["attacks"]["iDLG"]["summary"].startswith("Label recovery")
    assert "labels" in found["grants"]
    one = json.loads(run("list", "iDLG", "--json")[1])
    assert "arXiv" in one["roles"]["attacks"]["iDLG"]["explanation"]


@pytest.mark.slow
def test_an_audit_its_report_and_a_training_are_json(run, folder, tmp_path):
    out = tmp_path / "runs" / "a"
    status, text, err = run("audit", folder, *SMALL, "--out", out, "--json")
    found = json.loads(text)
    assert (status, found["status"], found["kind"]) == (0, 0, "audit")
    assert [cell["attack"] for cell in found["cells"]] == ["iDLG(steps=3)"]
    assert found["text"].startswith("Without a defense")
    assert str(out / "share/report.html") in found["files"]
    assert "wrote" not in err
    again = json.loads(run("report", out, "--json")[1])
    assert again["cells"] == found["cells"]
    words = ["--rounds", 1, "--clients", 2, "--batch-size", 2, "--size", 16, "--model", "MLP((4,))"]
    trained = json.loads(run("train", folder, *words, "--json")[1])
    assert [row["round"] for row in trained["rounds"]] == [0, 1]
    assert trained["kind"] == "training"


@pytest.mark.slow
def test_a_verdict_that_fails_the_pipeline_is_in_the_json(run, folder):
    words = [*SMALL, "--attack", "RGAP", "--fail-on", "inconclusive", "--json"]
    status, text, err = run("audit", folder, *words)
    assert json.loads(text)["status"] == status
    assert status in (3, 4)
    assert f"exit status {status} by --fail-on inconclusive" in err


# --- --images -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_by_default_all_images_are_attacked_if_there_are_fewer_than_32(run, folder):
    words = [word for word in SMALL if word not in ("--images", "2")]
    status, text, err = run("audit", folder, *words)
    assert status == 0
    assert "note: there are 10 images, and all are attacked (with more, 32 by default)" in err
    assert "none of 10 images" in text


def test_the_default_number_of_images_fits_updates_and_data():
    from medpfl import Victims
    from medpfl.auditing.victims import fitted
    from medpfl.data import Samples

    data = Samples(size=16).load()
    assert len(data) > 32
    assert fitted(Victims(), data, 1).images == 32
    assert fitted(Victims(), data, 40).images == 40, "one update"
    assert fitted(Victims(images=5), data, 1).images == 5


# --- --dry-run ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dry_run_of_an_audit_tells_its_jobs_and_what_is_done(run, folder, tmp_path):
    out = tmp_path / "runs" / "a"
    words = ["audit", folder, *SMALL, "--defense", "LaplaceNoise(scale=0.01)", "--out", out]
    status, text, _ = run(*words, "--dry-run")
    assert status == 0
    assert not out.parent.exists(), "nothing was written"
    *rows, total = text.splitlines()
    assert [row.split("  ")[0] for row in rows] == [
        "iDLG(steps=3) x random-update",
        "iDLG(steps=3) x NoDefense()",
        "iDLG(steps=3) x LaplaceNoise(scale=0.01)",
        "iDLG(steps=3) x LaplaceNoise(scale=0.01), adaptive",
    ]
    assert re.fullmatch(r"in all: 4 jobs; about \d+ s, \d\.\d GiB of memory; nothing was run or written", total)
    assert run(*words)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    found = json.loads(run(*words, "--dry-run", "--json")[1])
    assert [step["done"] for step in found["steps"]] == [1, 1, 1, 1]
    assert (found["minutes"], found["notes"]) == (0, [])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = [word if word != "2" else "3" for word in words]
    assert "holds another run, which --force would discard" in run(*other, "--dry-run", "--force")[1]


def refusals(run, words: list[object]) -> list[tuple[int, str]]:
    """Return status and error of a command, without and with ``--dry-run``."""
    found = []
    for more in (["--dry-run"], []):
        status, out, err = run(*words, *more)
        assert not out or more == []
        found.append((status, "\n".join(line for line in err.splitlines() if "error" in line)))
    return found[::-1]


CASES = {
    "another audit": lambda place: (["audit", *SMALL, "--out", place / "a"], ["--size", "20"]),
    "numbers only": lambda place: (["audit", *SMALL, "--out", place / "a"], ["--numbers-only"]),
    "images are kept": lambda place: (["audit", *SMALL, "--out", place / "a", "--numbers-only"], []),
    "another training": lambda place: (["train", *TINY, "--out", place / "a"], ["--seed", "7"]),
    "an audit in place of a training": lambda place: (["train", *TINY, "--out", place / "a"], None),
    "another frontier": lambda place: (["frontier", *TINY, *SETTINGS, "--out", place / "a"], ["--seed", "7"]),
    "another form": lambda place: (["reproduce", *STUDY, "--out", place / "a"], ["--steps", "2"]),
}
TINY = ["--clients", "2", "--batch-size", "2", "--size", "16", "--model", "MLP((4,))", "--rounds", "1"]
SETTINGS = ["--defense", "LaplaceNoise(scale=geom(0.1, 1, 2))", "--attack", "iDLG(steps=1)", "--images", "2"]
STUDY = ["noise", "--data", "samples", "--quick", "--part", "iDLG", "--images", "2", "--steps", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_refuses_a_run_directory_with_the_commands_own_words(run, tmp_path, name):
    words, more = CASES[name](tmp_path / "runs")
    assert run(*words)[0] == 0
    if more is None:
        words, more = ["audit", *SMALL, "--out", words[-1]], []
    plain = [word for word in words if word != "--numbers-only"]
    (status, told), dry = refusals(run, [*plain, *more])
    assert status == 2
    assert "error" in told
    assert dry == (status, told)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["audit", "train", "frontier", "reproduce"])
@pytest.mark.parametrize("inside", ["", "below"])
def test_a_dry_run_refuses_a_place_where_nothing_can_be_created(run, tmp_path, command, inside):
    (tmp_path / "file").write_text("not a folder")
    options = {"audit": SMALL, "train": TINY, "frontier": [*TINY, *SETTINGS], "reproduce": STUDY}[command]
    (status, told), dry = refusals(run, [command, *options, "--out", tmp_path / "file" / inside])
    assert (status, dry) == (2, (2, told))
    assert "cannot be created" in told


@pytest.mark.slow
def test_a_dry_run_misses_a_lost_key(run, tmp_path):
    words = ["audit", *SMALL, "--out", tmp_path / "runs" / "a"]
    assert run(*words)[0] == 0
    next((tmp_path / "runs").glob("*key*.json")).unlink()
    (status, told), dry = refusals(run, words)
    assert (status, dry) == (2, (2, told))
    assert "is missing" in told


@pytest.mark.slow
def test_a_dry_run_refuses_missing_rounds_with_the_commands_own_words(run, tmp_path):
    assert run("train", *TINY, "--out", tmp_path / "runs" / "t")[0] == 0
    words = ["audit", *SMALL[2:], "--model", tmp_path / "runs" / "t", "--rounds", "0,7"]
    (status, told), dry = refusals(run, words)
    assert (status, dry) == (2, (2, told))
    assert "7" in told


@pytest.mark.slow
def test_a_dry_run_refuses_a_directory_that_another_run_writes_to(run, tmp_path):
    from filelock import FileLock

    out = tmp_path / "runs" / "a"
    words = ["audit", *SMALL, "--out", out]
    assert run(*words)[0] == 0
    with FileLock(out / ".lock"):
        (status, told), dry = refusals(run, words)
    assert (status, dry) == (2, (2, told))
    assert "another run is writing" in told


@pytest.mark.slow
def test_a_dry_run_of_a_disclosure_that_fails_is_refused(run, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom medpfl.core.roles import Defense\n"
        "@dataclass(frozen=True, repr=False)\nclass Mine(Defense):\n"
        "    def update(self, value, state, generator):\n        return value, state\n"
        "    def disclose(self, sent, plan=None, before=None):\n        raise ValueError('no')\n"
    )
    (status, told), dry = refusals(run, ["audit", *SMALL, "--defense", f"{tmp_path}/mine.py:Mine()"])
    assert (status, dry) == (2, (2, told))


@pytest.mark.slow
def test_a_dry_run_of_a_training_and_a_frontier(run, folder, tmp_path):
    words = [folder, "--clients", 2, "--batch-size", 2, "--size", 16, "--model", "MLP((4,))", "--rounds", 3]
    out = tmp_path / "t"
    text = run("train", *words, "--out", out, "--dry-run")[1]
    assert "training under NoDefense()  3 rounds  4 jobs" in text
    assert not out.exists()
    more = ["--defense", "LaplaceNoise(scale=geom(0.1, 1, 2))", "--attack", "iDLG(steps=3)", "--images", 2]
    text = run("frontier", *words, *more, "--out", tmp_path / "f", "--dry-run")[1]
    assert text.count("trainings: training under ") == 3
    assert "audit: iDLG(steps=3) x random-update" in text
    assert not (tmp_path / "f").exists()


def test_the_folder_stays_empty_after_a_refused_dry_run(run, tmp_path):
    status, _, err = run("reproduce", "--from", tmp_path, "--dry-run")
    assert status == 2
    assert "leave out --dry-run" in err
    assert list(Path(tmp_path).iterdir()) == []


def test_json_hides_private_words_and_has_no_nan(capsys):
    print_json({"text": f"cannot read {private('doe_john.png', 'a file')}", "rows": [{"loss": float("nan")}]})
    assert json.loads(capsys.readouterr().out) == {"text": "cannot read a file", "rows": [{"loss": None}]}
