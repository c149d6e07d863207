"""A frontier from trainings and audits: its files, a kill in the middle, other limits, and bad input."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from medpfl import InputError, Run, cli
from medpfl.auditing.report import reread
from medpfl.auditing.store import read_rows
from medpfl.core.errors import DivergedError
from medpfl.core.experiments.options import options_in
from medpfl.core.experiments.training import Training
from medpfl.core.verdicts import NO_LEAK
from medpfl.runs.directory import RunDirectory
from medpfl.tradeoff import result as result_module
from medpfl.tradeoff import run as module
from medpfl.tradeoff.result import FRONTIER
from medpfl.tradeoff.run import perform_frontier, remake
from medpfl.tradeoff.tasks import strengths_of
from medpfl.training.report import Trained
from medpfl.training.store import read_rounds
from tests.processes import start
from tests.tradeoff.frontier_cases import SMALL, draw, small

# They share a fixture that takes seconds; some compare its page.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("charts")]

SPECS = ["NoDefense()", "GaussianNoise(scale=0.001)", "GaussianNoise(scale=10)", "TopK(keep=0.5)"]
FILES = {"frontier.json", "frontier.csv", "frontier.html"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("secret-place") / "data")


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """A finished frontier and its result. It stays as it is: what changes it takes a copy."""
    out = tmp_path_factory.mktemp("frontier") / "whole"
    return out, perform_frontier(small(pictures).having(out=out))


def copied(out, folder):
    """A copy of a frontier, with its key beside it."""
    return Path(shutil.copytree(out.parent, folder)) / out.name


def read(out):
    return {name: (out / "share" / name).read_text() for name in sorted(FILES)}


@pytest.mark.parametrize(("low", "warned"), [(0.5, True), (0.51, False), (None, False)])
def test_an_undefended_model_no_better_than_guessing_is_told_before_the_audits(low, warned, capsys, monkeypatch):
    score = {"balanced_accuracy": 0.6, "balanced_accuracy_low": low}
    training = Trained([SimpleNamespace(scores={"test": score})], {"data": {"classes": 2}})
    monkeypatch.setattr(module, "read_training", lambda _: training)
    module._warn_if_no_better_than_guessing(Path())
    said = "balanced accuracy is 60 %, and guessing reaches 50 %. So far nothing can be recommended: train longer"
    assert (said in capsys.readouterr().err) is warned


def bare(patch):
    """Leave out the pages of the runs inside a frontier, which other tests read."""
    patch.setattr("medpfl.reporting.write_pages", lambda *_: [])
    patch.setattr("medpfl.reporting.training.write_training_page", lambda folder, *_: folder / "report.html")


@pytest.fixture
def no_pages_of_runs(monkeypatch):
    bare(monkeypatch)


def conclusive(patch):
    """Make every setting one that is shown to leak nothing: these images are too few, and the model learns little.

    The choice's own tests cover verdicts, controls and accuracies.
    """
    real = result_module.points_of

    def points_of(*given):
        points = [{**point, "verdict": NO_LEAK} for point in real(*given)]
        return [{**points[0], "accuracy_low": 0.9}, *points[1:]]

    patch.setattr(result_module, "points_of", points_of)
    patch.setattr("medpfl.tradeoff.choice._control_works", lambda *_: True)


@pytest.fixture(scope="module")
def recommended(whole, pictures, tmp_path_factory):
    """A copy of the frontier that was called again with a limit, which its strongest noise meets, and the result."""
    out, found = whole
    limit = f"identified<={max(found.points[2]['identified_end'], 0.61):.2f}"
    again = copied(out, tmp_path_factory.mktemp("recommended") / "copy")
    with pytest.MonkeyPatch.context() as patch:
        bare(patch)
        conclusive(patch)
        return again, perform_frontier(small(pictures, limit=[limit]).having(out=again)), limit


def undated(out):
    """Return points and recommendation, which must be the same after a kill."""
    shown = json.loads((out / "share/frontier.json").read_text())
    return shown["points"], shown["recommendation"]


def test_workers_train_and_audit_to_the_same_points(whole, pictures, tmp_path, no_pages_of_runs):
    perform_frontier(small(pictures).having(out=tmp_path / "two", workers=2))
    assert undated(tmp_path / "two") == undated(whole[0])


def test_the_first_trainings_fill_the_workers_and_the_audit_comes_before_the_others(pictures, tmp_path, monkeypatch):
    course = []

    def trained(_, tasks, *__):
        course.append([(setting.place, seed) for setting, seed in tasks])
        return {SPECS[2]} & {setting.spec for setting, _ in tasks}

    monkeypatch.setattr(module, "_trained", trained)
    monkeypatch.setattr(module, "_warn_if_no_better_than_guessing", lambda _: None)
    monkeypatch.setattr(module, "_audited_at_once", lambda *_: course.append("audit"))
    for workers, first in ((1, [(0, 0)]), (5, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)])):
        with pytest.raises(InputError, match="training-0-seed-0' is not a run directory"):  # nothing was trained
            perform_frontier(small(pictures, seeds=2).having(out=tmp_path / f"{workers}", workers=workers))
        begun, audit, others = course
        left = [(place, seed) for place in range(4) for seed in range(2) if (place, seed) not in first]
        assert (begun, audit) == (first, "audit")
        assert others == [one for one in left if one != (2, 1) or (2, 0) not in first], "what diverged is done with"
        course.clear()


def test_only_under_a_defense_may_a_training_diverge(pictures, tmp_path, monkeypatch):
    def diverges(_):
        raise DivergedError("not finite")

    monkeypatch.setattr(module, "perform_training", diverges)
    train, settings = module._Training(small(pictures), tmp_path), strengths_of(SMALL["defense"])
    assert train((settings[1], 0))
    with pytest.raises(DivergedError):
        train((settings[0], 0))


@pytest.mark.slow
def test_each_setting_is_a_point_made_of_its_training_and_its_audit(whole):
    out, found = whole
    assert [p["defense"] for p in found.points] == SPECS
    cells = reread(out / "runs" / "audit").summary
    for place, point in enumerate(found.points):
        rows = list(read_rounds(out / "runs" / f"training-{place}-seed-0" / "share/rounds.jsonl"))
        assert (len(rows), point["accuracy"]) == (3, rows[-1].scores["validation"]["balanced_accuracy"])
        own = [cell for cell in cells if cell.defense == point["defense"]]
        assert point["ssim"] == max(cell.ssim.value for cell in own)
        assert {cell.knows_defense for cell in own} == ({None} if place == 0 else {False, True})
    assert [p["loss"] for p in found.points] == [found.points[0]["accuracy"] - p["accuracy"] for p in found.points]


def test_the_attacked_client_is_that_of_the_training_with_fewer_images(whole):
    out, found = whole
    plan = json.loads((out / "runs/audit/run.json").read_text())["identity"]["plan"]
    assert plan == "Plan(algorithm='FedAvg', batch_size=1, local_images=1, learning_rate=0.05, mode='train')"
    assert found.settings["experiment"]["weights that are attacked"] == "untrained"
    rows = read_rows(out / "runs/audit/share/findings.jsonl")
    assert len({row.image for row in rows if not row.control}) == SMALL["images"]


def test_the_files_say_the_same_and_name_no_path(whole, pictures):
    out, found = whole
    shown = json.loads((out / "share/frontier.json").read_text())
    assert (shown["points"], shown["recommendation"]) == (found.points, found.recommendation)
    table = list(csv.DictReader((out / "share/frontier.csv").read_text().splitlines()))
    assert [row["defense"] for row in table] == SPECS
    assert [float(row["ssim"]) for row in table] == [p["ssim"] for p in found.points]
    page = (out / "share/frontier.html").read_text()
    assert page.count("<svg") == 4
    assert "<img" not in page
    assert all(one.removesuffix("()") in page.replace("<wbr>", "") for one in SPECS[1:])
    for path in out.rglob("*"):
        if path.is_file() and path.name != "medpfl-key.json":
            assert b"secret-place" not in path.read_bytes(), path
    assert not (out / "share/recommended.yaml").exists(), "so few images show nothing"


@pytest.mark.slow
def test_the_page_is_made_again_from_stored_rows(whole, capsys):
    out, _ = whole
    before = read(out)
    for name in FILES:
        (out / "share" / name).unlink()
    assert cli.main(["report", str(out)]) == 0
    assert read(out) == before
    assert f"wrote {out}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.slow
def test_another_limit_needs_no_other_run(whole, recommended, pictures):
    (out, found), (again, result, limit) = whole, recommended
    bare, least = found.points[0], found.points[2]
    assert least["ssim_end"] < bare["ssim"], "the noise of this test hides the images"
    same = "runs/audit/share/findings.jsonl"
    assert (again / same).read_bytes() == (out / same).read_bytes()
    assert result.recommendation["limits"] == [limit]
    assert result.recommendation["state"] == "recommended"
    assert result.recommendation["defense"] == "GaussianNoise(scale=10)"
    assert "It costs the least accuracy: its model has a balanced accuracy of" in str(result)
    path = again / "share/recommended.yaml"
    assert path.parent.name == "share", "it names no path"
    assert "# Recommended under identified<=" in path.read_text(), "the reasons are in it"
    said = yaml.safe_load(path.read_text())
    assert Training.of(**said) == Training.of(
        **{k: v for k, v in SMALL.items() if k in options_in(Training)} | {"defense": ["GaussianNoise(scale=10)"]}
    )
    assert str(pictures) not in path.read_text()


def test_what_an_earlier_limit_recommended_is_gone(whole, tmp_path):
    left = [tmp_path / folder / "recommended.yaml" for folder in ("share", "private")]
    for path in left:
        path.parent.mkdir()
        path.write_text("of an earlier limit")
    experiment = small("samples")
    result_module.write_recommended(tmp_path, experiment, strengths_of(experiment.defense), whole[1])
    assert not any(path.exists() for path in left)


@pytest.mark.slow
def test_train_takes_what_is_recommended_as_it_stands(recommended, pictures, tmp_path, capsys):
    out, found, _ = recommended
    said = ["--config", str(out / "share/recommended.yaml"), "--out", str(tmp_path / "t"), "--quiet"]
    assert cli.main(["train", str(pictures), *said]) == 0
    place = SPECS.index(found.recommendation["defense"])
    own = out / f"runs/training-{place}-seed-0/round-2/weights.safetensors"
    assert (tmp_path / "t/round-2/weights.safetensors").read_bytes() == own.read_bytes()
    capsys.readouterr()


def test_a_recommendation_that_names_a_file_of_ones_own_may_not_be_shared(tmp_path):
    for model, folder in (("some/place.py:make", "private"), ("MLP", "share")):
        experiment = small("samples", model=model)
        settings = strengths_of(experiment.defense)
        chosen = {"defense": settings[1].spec, "limits": ["asr<=0.1"]}
        result = result_module.FrontierResult([], chosen, {})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(result_module.FrontierResult, "__str__", lambda _: "reasons")
            result_module.write_recommended(tmp_path, experiment, settings, result)
        (path,) = tmp_path.rglob("*.yaml")
        assert path == tmp_path / folder / "recommended.yaml"


def words(pictures, out):
    listed = [f"--{name}={one}" for name in ("defense", "attack") for one in SMALL[name]]
    plain = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items() if not isinstance(v, list)]
    return ["frontier", str(pictures), *listed, *plain, "--out", str(out)]


DIES = """
import os, signal, sys
from medpfl import cli
from medpfl.auditing.player import Player
from medpfl.training.trainer import Trainer

kind, name, left = {place}
play = getattr(kind, name)

def dies(*given):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return play(*given)

setattr(kind, name, dies)
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_frontier_killed_in_an_audit_and_in_a_training_ends_as_an_undisturbed_one(
    whole, pictures, tmp_path, capsys, no_pages_of_runs
):
    out = tmp_path / "killed"
    for place in ('Player, "__call__", 3', 'Trainer, "play", 4'):
        process = start(DIES.format(place=place), *words(pictures, out))
        process.join(timeout=300)
        assert process.exitcode == -signal.SIGKILL, place
    assert not (out / "share/frontier.json").exists()
    with pytest.raises(InputError, match="an unfinished frontier: repeat the same frontier command"):
        remake(out)
    first = (out / "runs/audit/share/findings.jsonl").read_bytes()
    assert cli.main([*words(pictures, out), "--quiet"]) == 0
    assert (out / "runs/audit/share/findings.jsonl").read_bytes() == first, "what was finished was not done again"
    assert undated(out) == undated(whole[0])
    capsys.readouterr()


QUICK = {"attack": ["iDLG(steps=2)"], "images": 2}
"""For what does not depend on how much the attack reads."""
LOUD = [*SMALL["defense"][1:], "GaussianNoise(scale=1e38)"]
"""Under the last, a training diverges."""


@pytest.fixture(scope="module")
def of_trained(pictures, tmp_path_factory):
    """A frontier of trained models under two seeds, and its result."""
    out = tmp_path_factory.mktemp("trained") / "out"
    with pytest.MonkeyPatch.context() as patch:
        bare(patch)
        loud(patch)
        return out, perform_frontier(small(pictures, round=2, seeds=2, draws=2, defense=LOUD, **QUICK).having(out=out))


def loud(patch):
    patch.setattr("medpfl.core.experiments.limits._REAL", 1e39)  # no noise within the bounds does it so soon


@pytest.mark.slow
def test_a_trained_model_is_audited_under_its_own_defense(of_trained, no_pages_of_runs):
    out, found = of_trained
    runs = sorted(p.name for p in (out / "runs").iterdir() if p.is_dir())
    trainings = [f"training-{place}-seed-{seed}" for place in range(2) for seed in range(2)]
    assert runs == ["audit-0", "audit-1", *trainings, "training-2-seed-0"], "what diverged has no model to audit"
    for place, point in enumerate(found.points[:2]):
        report = reread(out / f"runs/audit-{place}")
        assert report.settings.experiment["model"].endswith("round=2)")
        assert point["ssim"] == max(c.ssim.value for c in report.summary if c.defense == point["defense"])
        assert (point["interval"], len(point["accuracies"])) == ("seeds", 2)


@pytest.mark.slow
def test_a_defense_under_which_training_diverges_is_a_gap(
    pictures, of_trained, tmp_path, monkeypatch, no_pages_of_runs
):
    loud(monkeypatch)
    of_untrained = (
        tmp_path / "out",
        perform_frontier(small(pictures, defense=LOUD, **QUICK).having(out=tmp_path / "out")),
    )
    for out, found in (of_untrained, of_trained):
        last = found.points[-1]
        assert (last["gap"], last["accuracy"], last["loss"]) == ("the training diverged", None, None)
        assert (last["images"] > 0) == (out is of_untrained[0])
        assert found.points[1]["gap"] is None
        assert "the training diverged" in (out / "share/frontier.html").read_text()
        before = read(out)
        remake(out)
        assert read(out) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"defense": []}, "a frontier with no defended settings has nothing to choose from"),
        (
            {"defense": ["TopK(keep=0.1)"]},
            "a frontier with 1 defended setting has nothing to choose from: give several",
        ),
        ({"defense": ["TopK(keep=0.1)", "NoDefense", "TopK(0.1)"]}, "a frontier with 1 defended setting"),
        ({"defense": ["TopL(keep=lin(0.1, 0.5, 2))"]}, "did you mean 'TopK'?"),
        ({"limit": ["psnr<=3"]}, "there is no leakage metric 'psnr'"),
        ({"attack": ["iDLH"]}, "did you mean 'iDLG'?"),
        ({"round": 3}, "--round is 3, but --rounds is only 2"),
        (
            {"images": 2, "images_per_update": 3},
            "--images is 2, fewer than one update holds (--images-per-update is 3)",
        ),
        ({"holdout": 25}, "--validation"),
        ({"data": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
def test_bad_input_is_said_before_any_work(options, message, pictures, tmp_path, monkeypatch):
    for work in ("auditing.player.Player.__call__", "training.trainer.Trainer.play"):
        monkeypatch.setattr(f"medpfl.{work}", lambda *_: pytest.fail("work was done"))
    with pytest.raises(InputError) as error:
        perform_frontier(small(**{"data": pictures, **options}).having(out=tmp_path / "out"))
    assert message in str(error.value)


@pytest.mark.slow
def test_another_frontier_is_not_mixed_with_it(whole, pictures, tmp_path, monkeypatch):
    out = copied(whole[0], tmp_path / "copy")
    with pytest.raises(InputError, match="holds another frontier \\(other rounds\\): name another --out, or --force"):
        perform_frontier(small(pictures, rounds=1).having(out=out))
    fewer = {"defense": ["TopK(keep=0.5)", "TopK(keep=0.1)"], **QUICK}
    with monkeypatch.context() as patch:
        bare(patch)
        forced = perform_frontier(small(pictures, seed=3, rounds=1, **fewer).having(out=out, force=True))
    assert [p["defense"] for p in forced.points] == ["NoDefense()", *fewer["defense"]]
    monkeypatch.setattr(module, "_trained", lambda *_: pytest.fail("begun"))
    with pytest.raises(pytest.fail.Exception, match="begun"):
        perform_frontier(small(pictures, seed=4).having(out=out, force=True))
    assert not any((out / "share" / name).exists() for name in FILES), "what another experiment gave is gone"


def test_another_model_s_trainings_are_not_mixed_with_it(whole, pictures, tmp_path):
    with pytest.raises(InputError, match="holds another training \\(other model"):
        perform_frontier(small(pictures, model="MLP(hidden=(5,))").having(out=copied(whole[0], tmp_path / "copy")))


def test_two_do_not_write_at_once(pictures, tmp_path):
    with RunDirectory(tmp_path, FRONTIER).locked(), pytest.raises(InputError, match="another run is writing"):
        perform_frontier(small(pictures).having(out=tmp_path))


@pytest.mark.slow
def test_the_command_prints_table_and_sentences(whole, pictures, capsys, monkeypatch, no_pages_of_runs):
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = whole
    assert cli.main(words(pictures, out)) == 0
    shown = capsys.readouterr()
    assert "training with TopK(keep=0.5), seed 0" in shown.err
    assert "2    GaussianNoise(scale=10)" in shown.out
    assert max(map(len, shown.out.split("Without a defense")[0].splitlines())) <= 80
    assert "Nothing is recommended" in shown.out
    assert cli.main([*words(pictures, out)[:-2], "--quiet"]) == 2
    assert "--out is missing: name a directory for the frontier's runs and figure" in capsys.readouterr().err
    assert cli.main(["frontier", "--limt", "x"]) == 2
    assert "did you mean '--limit'?" in capsys.readouterr().err


def test_every_option_of_a_training_arrives(monkeypatch, capsys):
    given = {}
    monkeypatch.setattr(
        module, "perform_frontier", lambda experiment: given.update(experiment.options(), run=experiment.run)
    )
    monkeypatch.setattr("medpfl.reporting.terminal.print_frontier", lambda *_: None)
    said = ["--limit=asr<=0.5", "--limit", "ssim<=0.4", "--seeds=3", "--round=2", "--fraction=0.5", "--grant=labels"]
    assert cli.main(["frontier", "samples", *said, "--defense=Signs", "--out", "o", "--force"]) == 0
    assert (given["limit"], given["seeds"], given["round"]) == (["asr<=0.5", "ssim<=0.4"], 3, 2)
    assert (given["fraction"], given["grant"]) == (0.5, ["labels"])
    assert (given["defense"], given["data"]) == (["Signs"], "samples")
    assert given["run"] == Run(out="o", force=True, progress=True)
