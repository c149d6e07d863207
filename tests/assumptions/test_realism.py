"""The realism meter: one audit for each case, all with the same attacks and images."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from medpfl import InputError, Plan, Run, ThreatModel, Victims, audit, realism
from medpfl.assumptions.cases import Meter
from medpfl.assumptions.run import _prepared, remake
from medpfl.attacks import iDLG
from medpfl.auditing.player import Player
from medpfl.auditing.run import AuditCase, perform
from medpfl.cli import main
from medpfl.core.errors import private
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.verdicts import RANDOM_UPDATE
from medpfl.federation.run import perform_federation
from tests.auditing.audit_cases import draw_folder, plain, some_images
from tests.flat import flat
from tests.training.training_cases import small

TINY = {"model": "MLP((6,))", "attacks": ["iDLG(steps=1)"], "images": 10}
NAMES = [
    "favorable", "batch-4", "steps-5", "steps-20", "labels-inferred", "noise-1", "noise-10", "together",
]  # fmt: skip
NOISE = "LaplaceNoise(scale={}, relative='layer')"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A small meter in a run directory, without the pages of the audits inside, which other tests read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medpfl.reporting.write_pages", lambda *_: [])
        return flat(realism, data=some_images(12), out=tmp_path_factory.mktemp("runs") / "r", **TINY)


def case(data=None, threads=1, **options):
    """Return an audit from whose settings a meter begins."""
    asked = {**TINY, "data": some_images(12) if data is None else data, **options}
    return AuditCase(
        asked["model"],
        asked["data"],
        asked["attacks"],
        (),
        asked.get("plan", Plan()),
        ThreatModel(),
        asked.get("weights"),
        Victims(images=asked["images"], size=16, clients=asked.get("clients")),
        Experiment.criteria,
        Run(threads=threads),
    )


def planned(data=None, **options):
    """Return the cases of a meter, without running an attack."""
    with _prepared(Meter.of(case(data, **options))) as (cases, *_):
        return cases


def test_each_case_drops_one_assumption(found):
    assert [case.name for case in found.cases] == NAMES
    plans = {name: report.settings.experiment["plan"] for name, report in found.reports.items()}
    assert plans == {
        "favorable": repr(Plan(mode="eval")),
        "batch-4": repr(Plan(batch_size=4, mode="eval")),
        "steps-5": repr(Plan("FedAvg", local_images=5, mode="eval")),
        "steps-20": repr(Plan("FedAvg", local_images=5, epochs=4, mode="eval")),
        "labels-inferred": repr(Plan(mode="eval")),
        "together": repr(Plan("FedAvg", batch_size=4, epochs=5, mode="train")),
    }
    granted = {row["case"]: row["grants"] for row in found.rows}
    assert granted == {
        **dict.fromkeys(NAMES, ("labels",)),
        **dict.fromkeys(("noise-1", "noise-10"), ("labels", "defense")),
        **dict.fromkeys(("labels-inferred", "together"), ()),
    }
    assert {row["defense"] for row in found.rows if row["case"] == "noise-10"} == {NOISE.format(0.1)}


def test_all_cases_attack_the_same_images(found):
    images = {name: {row["image"] for row in found.rows if row["case"] == name} for name in NAMES}
    whole = images["favorable"]
    assert len(whole) == 10
    assert all(own <= whole and len(own) == (8 if name in ("batch-4", "together") else 10)
               for name, own in images.items())  # fmt: skip


def test_the_first_audit_is_an_audit_with_its_settings(found):
    defenses = [NOISE.format(0.01), NOISE.format(0.1)]
    threat = ThreatModel(("labels", "defense"))
    alone = flat(audit, data=some_images(12), defenses=defenses, plan=Plan(mode="eval"), threat=threat, **TINY)
    assert plain(found.reports["favorable"].rows, "image") == plain(alone.rows, "image")


def test_what_could_not_be_tested_is_said_with_the_reason(found):
    assert [text.partition(":")[0] for text in found.left_out] == [
        "8 images in a batch", "16 images in a batch", "train mode", "a trained model",
    ]  # fmt: skip
    assert "it needs 16 images or more (--images)" in found.left_out[0]
    assert "medpfl train DATA" in found.left_out[3]
    assert all(text.rstrip(".") in str(found) for text in found.left_out)


def test_page_table_and_json_are_shared_and_name_no_place(found, tmp_path_factory):
    folder = found.pages[0].parent
    assert sorted(path.name for path in folder.iterdir()) == ["realism.csv", "realism.html", "realism.json"]
    page, told = (folder / "realism.html").read_text(), json.loads((folder / "realism.json").read_text())
    assert page.count("<svg") == 1
    assert "<img" not in page
    for text in (page, json.dumps(told)):
        assert str(folder.parents[1]) not in text
    lines = list(csv.DictReader(io.StringIO((folder / "realism.csv").read_text())))
    assert [line["case"] for line in lines] == [case["case"] for case in told["cases"]] == NAMES
    for line, case in zip(lines, told["cases"], strict=True):
        assert line["asr_high"] == str(case["asr_high"])
        (cell,) = case["cells"]
        assert (case["asr"], case["ssim_gain"]) == (cell["union"]["asr"], cell["ssim_gain"])
    assert "8" in {line["images"] for line in lines}
    assert found._repr_html_().count("<tr>") == len(NAMES) + 1


def test_its_pages_can_be_made_again(found):
    out = found.pages[0].parents[1]
    before = {path.name: path.read_bytes() for path in (out / "share").iterdir()}
    again = remake(out)
    assert again.to_dict()["cases"] == found.to_dict()["cases"]
    assert {path.name: path.read_bytes() for path in (out / "share").iterdir()} == before


@pytest.mark.parametrize(
    "entry",
    [{"cases": None}, {"cases": []}, {"left_out": 3}, {"name": "../x"}, {"run": "a/b"}, {"text": "x" * 300}],
)
def test_a_damaged_directory_is_refused(found, entry, tmp_path):
    run = json.loads((found.pages[0].parents[1] / "run.json").read_text())
    first = run["cases"][0]
    run |= {"cases": [{**first, **entry}]} if entry.keys() <= first.keys() else entry
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        remake(tmp_path)


@pytest.mark.slow
def test_an_interrupted_meter_continues_with_equal_rows(tmp_path, monkeypatch, no_pages):
    play, left = Player.__call__, [15]

    def stops(self, job):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return play(self, job)

    folder = draw_folder(tmp_path / "data", {"a": 3, "b": 3}, size=16)
    tiny = {**TINY, "data": folder, "size": 16, "memory": 1e-6, "images": 4}
    whole = flat(realism, out=tmp_path / "runs" / "whole", **tiny)
    out = tmp_path / "runs" / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Player, "__call__", stops)
        with pytest.raises(KeyboardInterrupt):
            flat(realism, out=out, **tiny)
    first, second = (out / "runs" / name / "share" / "findings.jsonl" for name in ("favorable", "labels-inferred"))
    kept = first.read_bytes(), second.read_bytes()
    assert not (out / "share" / "realism.json").exists()
    with pytest.raises(InputError, match="run directory"):
        remake(out)
    continued = flat(realism, out=out, **tiny)
    assert first.read_bytes() == kept[0]
    assert second.read_bytes().startswith(kept[1])
    rows = [
        [{k: v for k, v in row.items() if k not in ("seconds", "date")} for row in one.rows]
        for one in (whole, continued)
    ]
    assert rows[0] == rows[1]
    with pytest.raises(InputError, match="holds another realism"):
        flat(realism, out=out, **{**tiny, "images": 3})


@dataclass(frozen=True, repr=False)
class OneImage(iDLG):
    """An attack that takes the gradient of one image only."""

    steps: int = 3

    def check(self, model, plans, image_shape):
        if plans[0].images > 1:
            raise InputError(f"it takes one image, as {private('/home/doe/scan.png')} and '/srv/doe.csv' say")


def test_a_case_that_no_attack_takes_is_left_out_and_an_attack_that_does_not_take_it_is_named():
    cases = planned(attacks=[OneImage()])
    assert [case.name for case in cases.cases] == ["favorable", "labels-inferred", "noise-1", "noise-10"]
    assert sum("it takes one image" in text for text in cases.left_out) == 4
    assert "doe" not in "".join(cases.left_out), "they go into files that may be shared"
    both = planned(attacks=[OneImage(), "iDLG(steps=1)"])
    assert [case.name for case in both.cases] == NAMES
    assert [repr(one) for one in both.scenarios["batch-4"].attacks] == ["iDLG(steps=1)"]
    assert len(both.scenarios["labels-inferred"].attacks) == 2
    assert sum("it takes one image" in text for text in both.left_out) == 4


def test_batches_need_images_for_two_updates():
    cases = planned(some_images(32), images=32)
    assert [case.name for case in cases.cases][1:4] == ["batch-4", "batch-8", "batch-16"]
    assert {len(cases.scenarios[f"batch-{n}"].victims) for n in (4, 8, 16)} == {8, 4, 2}
    assert cases.scenarios["together"].plan == Plan("FedAvg", batch_size=8, epochs=5)
    few = planned(images=4)
    assert [case.name for case in few.cases] == ["favorable", "labels-inferred", "noise-1", "noise-10", "together"]
    assert few.scenarios["together"].plan == Plan("FedAvg", epochs=5)


@pytest.mark.parametrize("model", ["ConvNet(width=2, depth=1, norm='batch')", "with dropout"])
def test_train_mode_is_a_case_if_a_layer_differs(model):
    cases = planned(model=with_dropout() if model == "with dropout" else model)
    assert cases.scenarios["train-mode"].plan.mode == "train"
    assert "train mode" in cases.cases[-1].text


def with_dropout():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Sigmoid(), nn.Dropout(0.5), nn.Linear(8, 2))


def test_a_given_network_is_not_called_untrained():
    assert "untrained" not in planned(model=with_dropout()).cases[0].text
    assert "an untrained model" in planned().cases[0].text


def test_optimizer_and_loss_are_those_of_the_plan():
    plan = Plan(learning_rate=0.01, momentum=0.9, label_smoothing=0.1)
    assert {(one.plan.learning_rate, one.plan.momentum, one.plan.label_smoothing)
            for one in planned(plan=plan).scenarios.values()} == {(0.01, 0.9, 0.1)}  # fmt: skip


def test_a_training_is_compared_from_its_last_round_to_its_first(tmp_path):
    out = tmp_path / "t"
    small(out=out)
    for model, last in ((out, 3), (str(out / "round-2"), 2)):
        cases = planned(model=model)
        assert "an untrained model" in cases.cases[0].text
        rounds = {name: repr(one.model).rpartition("round=")[2] for name, one in cases.scenarios.items()}
        assert {name for name, number in rounds.items() if number == f"{last})"} == {"trained", "together"}
        assert {number for name, number in rounds.items() if name not in ("trained", "together")} == {"0)"}
        assert f"the model after round {last}" in cases.cases[-1].text
    found = flat(realism, data=some_images(12), **{**TINY, "model": out, "images": 4})
    assert found.settings.experiment["model"] == "MLP(hidden=(6,))"
    weights = {name: report.settings.experiment["weights"] for name, report in found.reports.items()}
    assert weights["trained"] == weights["together"] == "trained, round 3"
    assert {own for name, own in weights.items() if name not in ("trained", "together")} == {"trained, round 0"}
    first = planned(model=out / "round-0")
    assert "trained" not in first.scenarios
    assert "an untrained model" in first.cases[0].text
    weights = planned(weights=out / "round-3" / "weights.safetensors")
    assert weights.scenarios["trained"].weights == out / "round-3" / "weights.safetensors"
    assert weights.scenarios["favorable"].weights is None
    with pytest.raises(InputError, match="--weights does not go with"):
        planned(model=out, weights=out / "round-3" / "weights.safetensors")


def test_all_cases_run_with_the_threads_of_the_command():
    """So does the test of a record, and the probe that decides a budget: the scene sets them."""
    before = torch.get_num_threads()
    with _prepared(Meter.of(case(threads=before + 1))):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_attack_is_decided_once_for_all_cases(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "medpfl.auditing.execution.standard_attack", lambda scenario, also: asked.append(scenario) or iDLG(steps=2)
    )
    cases = planned(attacks=())
    assert len(asked) == 1
    assert len(asked[0].defenses) == 1, "the minutes are those of one audit"
    assert {repr(one.attacks) for one in cases.scenarios.values()} == {"[iDLG(steps=2)]"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "4"], "leave out --batch-size"),
        (["--mode", "eval"], "leave out --mode"),
        (["--algorithm", "FedAvg", "--epochs", "2"], "leave out --algorithm"),
        (["--grant", "labels"], "leave out --grant and --naive"),
        (["--naive"], "leave out --grant and --naive"),
        (["--defense", "TopK(keep=0.1)"], "leave out --defense"),
        (["--rounds", "0,1"], "--rounds does not go with --realism"),
        (["--truth", "x"], "truth goes with a record"),
    ],
)
def test_what_the_meter_varies_cannot_be_set(words, message, capsys):
    assert main(["audit", "samples", "--realism", *words]) == 2
    assert message in capsys.readouterr().err


def test_records_have_no_assumptions_to_drop(tmp_path, capsys):
    with pytest.raises(InputError, match="--realism needs images"):
        perform_federation(Experiment.of(data="updates/*.safetensors", realism=True))
    with pytest.raises(InputError, match=r"use medpfl\.realism"):
        perform(Experiment.of(realism=True))


@pytest.mark.slow
def test_the_command_line_plans_runs_and_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    data = draw_folder(tmp_path / "data", {"a": 3, "b": 3}, size=16)
    words = ["audit", str(data), "--realism", "--model", "MLP((6,))", "--attack", "iDLG(steps=1)", "--size", "16"]
    words += ["--images", "6", "--out", str(tmp_path / "runs" / "r")]
    assert main([*words, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "labels-inferred: iDLG(steps=1) x NoDefense()" in plan
    assert "nothing was run or written" in plan
    assert not (tmp_path / "runs").exists()
    assert main([*words, "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "realism"
    assert told["cases"][0]["case"] == "favorable"
    assert told["files"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "realism meter of MLP((6,))" in shown.err
    assert "\u2026" not in shown.out.partition("In the most favorable case")[0], "a narrow terminal cuts nothing"
    assert main([*words, "--dry-run"]) == 0
    again = capsys.readouterr().out
    assert "another run" not in again
    assert again.count("skipped") == plan.count("images")
    assert main(["report", str(tmp_path / "runs" / "r"), "--quiet"]) == 0
    assert "wrote" in capsys.readouterr().out
    keys = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert keys == [".medpfl-key.json.lock", "medpfl-key.json", "r"]


def test_controls_have_the_first_case_of_their_audit(found):
    assert {row["case"] for row in found.rows if row["control"] == RANDOM_UPDATE} == set(found.reports)
