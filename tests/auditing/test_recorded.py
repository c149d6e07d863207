"""A recorded update from elsewhere, audited with its images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from medpfl import Batch, InputError, Plan, Record, Update, Weights, audit, audit_record, prepare
from medpfl.auditing.records.recorded import unsent
from medpfl.auditing.records.run import RecordCase
from medpfl.auditing.run import perform
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.records.steps import Steps
from medpfl.core.threat import ThreatModel
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, RECORDED, UNDEFENDED
from medpfl.data import ImageFolder
from medpfl.defenses import LaplaceNoise, NoDefense
from medpfl.federated.client import client_round
from medpfl.models import ConvNet, LeNet, ResNet
from tests.auditing.audit_cases import Answers, draw_folder, plain
from tests.flat import flat

COUNTS = {1: {"benign": 1}, 2: {"benign": 1, "malignant": 1}, 4: {"benign": 2, "malignant": 2}}
CLASSES = ("benign", "malignant")
FEDAVG = Plan("FedAvg", batch_size=2, local_images=4, epochs=2)


def make(
    tmp_path: Path, plan: Plan, *, defense=None, model=None, classes=CLASSES, seed=0, defense_spec=None, **context
):
    """Create a client's record and the folder with its images."""
    truth = draw_folder(tmp_path / "truth", COUNTS[plan.images], seed=seed)
    data = ImageFolder(truth, size=16).load()
    labels = torch.tensor([CLASSES.index(data.classes[int(i)]) for i in data.labels])
    network = (model or LeNet("idlg")).build(data.shape, 2, seed=11)
    ready, weights = prepare(network, plan), Weights.of(network)
    played = client_round(
        ready, weights, Batch(data.images, labels), plan, defense or NoDefense(), {}, torch.Generator().manual_seed(5)
    )
    context = {"image_shape": data.shape, "classes": classes, "defense": defense_spec, **context}
    Record(played.sent, plan, weights, **context).save(tmp_path / "client.record")
    return tmp_path / "client.record", truth


def look(record, truth, *, model="LeNet('idlg')", attacks=("iDLG(steps=1)",), **options):
    return flat(audit_record, record, truth, model, attacks=attacks, **options)


def by_defense(report):
    return {cell.defense: cell for cell in report.summary}


# --- what runs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("plan", [Plan(), Plan(batch_size=2), Plan(batch_size=2, mode="eval"), FEDAVG], ids=repr)
def test_a_record_runs_beside_its_control(tmp_path, plan):
    record, truth = make(tmp_path, plan)
    attack = Answers()
    report = look(record, truth, attacks=[attack])
    assert list(by_defense(report)) == [UNDEFENDED, RECORDED]
    assert [cell.images for cell in report.summary] == [plan.images] * 2
    assert {row.plan for row in report.rows} == {repr(plan)}
    sent = Record.load(record).update
    for name, tensor in attack.kept[-1].views[0].update.tensors.items():
        assert torch.equal(tensor[0], sent.tensors[name]), "the attack sees what was recorded"
    weights = Record.load(record).weights.parameters
    assert all(torch.equal(t, weights[k]) for k, t in attack.kept[-1].views[0].weights.parameters.items())


@pytest.mark.slow
def test_a_record_leaks_what_its_control_leaks(tmp_path):
    record, truth = make(tmp_path, Plan(batch_size=1))
    report = look(record, truth, attacks=["iDLG(steps=30)"])
    assert {cell.verdict for cell in report.summary} == {LEAKS}
    assert report.verdict()[1].startswith("From the recorded update, a curious server reconstructed 1 of 1 image")
    control, recorded = ([r for r in report.rows if r.defense == d and not r.control] for d in (UNDEFENDED, RECORDED))
    assert plain(control, "defense", "image") == plain(recorded, "defense", "image")


@pytest.mark.slow
@pytest.mark.parametrize("plan", [Plan(), Plan(batch_size=2)], ids=repr)
def test_what_the_truth_gives_is_what_was_recorded(tmp_path, plan):
    report = look(*make(tmp_path, plan))
    assert report.settings.record["difference"] < 1e-5
    assert report.settings.record["spread"] == 0.0
    assert "record-mismatch" not in by_defense(report)[RECORDED].flags


@pytest.mark.slow
def test_plain_torch_gradients_are_a_record(tmp_path):
    """A script by somebody who has never heard of MedPFL's types."""
    truth = draw_folder(tmp_path / "truth", COUNTS[2])
    data = ImageFolder(truth, size=16).load()
    torch.manual_seed(3)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(),\n"
        "                         nn.Linear(4 * 14 * 14, 2))\n"
    )
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)
    )
    weights = Weights.of(network)
    before = {k: v.clone() for k, v in weights.buffers.items()}
    nn.functional.cross_entropy(network(data.images), data.labels).backward()
    gradients = {k: p.grad for k, p in network.named_parameters()}
    Record(Update(gradients), Plan(batch_size=2), Weights(weights.parameters, before)).save(tmp_path / "r")
    report = look(tmp_path / "r", truth, model=f"{tmp_path}/net.py:make", size=16)
    assert report.settings.record["difference"] < 1e-4
    assert len(report.summary) == 2


@pytest.mark.slow
def test_the_client_s_own_order_is_no_mismatch(tmp_path):
    """The client draws its batch order, which changes the update by a few percent at large rates."""
    record, truth = make(tmp_path, Plan("FedAvg", batch_size=1, local_images=4, epochs=5))
    report = look(record, truth, attacks=[Answers()])
    assert report.settings.record["difference"] > 1e-3
    assert report.settings.record["checked"] == "unverified"
    assert any("the order of the images is unknown" in note for note in report.settings.notes)


def wrong_image(tmp_path):
    return make(tmp_path, Plan())[0], draw_folder(tmp_path / "other", COUNTS[1], seed=8)


def wrong_plan(tmp_path):
    path, truth = make(tmp_path, Plan("FedAvg", batch_size=1, learning_rate=0.3))
    made = Record.load(path)
    stated = Plan("FedAvg", batch_size=1, learning_rate=0.1)
    Record(made.update, stated, made.weights, image_shape=made.image_shape, classes=made.classes).save(path)
    return path, truth


def undeclared_defense(tmp_path):
    return make(tmp_path, Plan(), defense=LaplaceNoise(0.5))


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        (wrong_image, "the images are others|no single cause"),
        (wrong_plan, r"the learning rate was 0.3, not 0.1 \(a factor of 3\): give the plan"),
        (undeclared_defense, "an undeclared defense"),
    ],
)
def test_a_wrong_record_is_stopped_before_any_attack(tmp_path, wrong, cause):
    attack = Answers()
    with pytest.raises(InputError, match=f"the record is wrong, so no attack was run: .*({cause})"):
        look(*wrong(tmp_path), attacks=[attack])
    assert attack.kept == []


# --- the defense of the client --------------------------------------------------------------------------------


NOISE, KNOWN = LaplaceNoise(0.5), ThreatModel(("defense",))


def stated(tmp_path, used=NOISE, spec=None):
    return make(tmp_path, Plan(), defense=used, defense_spec=spec)


@pytest.mark.slow
@pytest.mark.parametrize("used", [NoDefense(), LaplaceNoise(0.2)], ids=repr)
def test_a_record_that_overstates_its_noise_is_a_mismatch(tmp_path, used):
    with pytest.raises(InputError, match=r"it has less noise than LaplaceNoise\(scale=0.5\)"):
        look(*stated(tmp_path, used, repr(NOISE)), attacks=["Posterior(steps=20)"], threat=KNOWN)


def test_a_defense_at_the_server_leaves_the_check_of_filters_as_it_is(tmp_path):
    """It acts after the update has left the client: an unknown filter is still unknown beside it."""
    late = "GaussianNoise(scale=0.1, where='server')"
    path, truth = make(tmp_path, Plan(), defense_spec=late)
    case = RecordCase(path, truth, "LeNet('idlg')", attacks=[Answers()])
    assert case.check()["checked"] == "right"
    path, truth = make(tmp_path, Plan(), defense=NOISE, filters=("OwnFilter()",))
    case = RecordCase(path, truth, "LeNet('idlg')", attacks=[Answers()])
    assert [one.check()["checked"] for one in (case, replace(case, defenses=[late]))] == ["unverified"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (repr(NOISE), {}),
        (None, {"defenses": [repr(NOISE)]}),
        ("LaplaceNoise(scale=99.0)", {"defenses": [NOISE]}),
    ],
)
def test_a_stated_defense_is_no_mismatch_and_known(tmp_path, spec, options):
    attack = Answers()
    report = look(*stated(tmp_path, spec=spec), attacks=[attack, "iDLG(steps=30)"], **options)
    assert list(by_defense(report)) == [UNDEFENDED, RECORDED]
    assert report.settings.record["defense"] == repr(NOISE)
    assert report.settings.record["difference"] > 1e-2, "noise has another draw here"
    assert all("record-mismatch" not in cell.flags for cell in report.summary)
    assert report.settings.grants == ("defense",)
    _, bare, naive, recorded = attack.kept
    assert naive.views[0].channel is None
    assert bare.views[0].channel is None
    (variance,) = {float(1 / t.flatten()[0]) for t in recorded.views[0].channel.precision.values()}
    assert variance == pytest.approx(2 * 0.5**2)
    assert {row.grants for row in report.rows if row.defense == RECORDED} == {(), ("defense",)}


@pytest.mark.slow
def test_a_record_s_defense_can_be_withheld_from_the_attacks(tmp_path):
    record, truth = stated(tmp_path, LaplaceNoise(50.0), "LaplaceNoise(scale=50.0)")
    report = look(record, truth, naive=True, attacks=["iDLG(steps=30)"])
    cell = by_defense(report)[RECORDED]
    assert "naive-attack" in cell.flags
    assert cell.verdict == INCONCLUSIVE
    assert report.settings.grants == ()


@pytest.mark.slow
def test_other_images_than_those_behind_the_stated_defense_are_a_mismatch(tmp_path):
    record, _ = stated(tmp_path, LaplaceNoise(1e-4), "LaplaceNoise(scale=0.0001)")
    other = draw_folder(tmp_path / "other", COUNTS[1], seed=8)
    with pytest.raises(InputError, match=r"differ.* under LaplaceNoise\(scale=0.0001\) is"):
        look(record, other)
    assert "record-mismatch" not in by_defense(look(record, tmp_path / "truth"))[RECORDED].flags


@pytest.mark.slow
def test_a_record_without_a_defense_has_none_to_know(tmp_path):
    report = look(*make(tmp_path, Plan()))
    assert report.settings.grants == ()
    assert report.settings.record["defense"] == UNDEFENDED
    assert "naive-attack" not in by_defense(report)[RECORDED].flags


@pytest.mark.slow
def test_the_stated_defense_is_part_of_the_experiment(tmp_path):
    record, truth = stated(tmp_path, spec=repr(NOISE))
    look(record, truth, out=tmp_path / "runs" / "a")
    with pytest.raises(InputError, match=r"another audit \(other record"):
        look(record, truth, out=tmp_path / "runs" / "a", defenses=["LaplaceNoise(scale=0.4)"])


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["LaplaceNose(scale=0.5)", "LaplaceNoise(", "LaplaceNoise(scale=-1)"])
def test_a_stated_defense_that_does_not_exist(tmp_path, spec):
    record, truth = make(tmp_path, Plan(), defense=NOISE, defense_spec=spec)
    with pytest.raises(InputError, match=r"^in '.*client.record': .*LaplaceNo.*; give --defense yourself"):
        look(record, truth)
    assert look(record, truth, defenses=[NOISE]).settings.record["defense"] == repr(NOISE)


# --- updates that are bad -------------------------------------------------------------------------------------


def test_an_update_of_zeros_is_stopped(tmp_path):
    record, truth = make(tmp_path, Plan())
    edit(record, lambda tensors: {k: t * 0 if k.startswith("update/") else t for k, t in tensors.items()})
    with pytest.raises(InputError, match="the update is exactly zero"):
        look(record, truth)


@pytest.mark.parametrize(
    ("sends", "change"), [(["num_samples"], "buffers"), (["buffers"], "num_samples"), ([], "num_samples")]
)
def test_an_update_with_what_the_plan_does_not_send(tmp_path, sends, change):
    record, truth = make(tmp_path, Plan())
    edit(record, steps={**Steps.of(Plan()).to_dict(), "sends": sends})
    with pytest.raises(InputError, match=f"the update contains {change}, but the plan does not send them"):
        look(record, truth)


@pytest.mark.slow
def test_on_disk_resumed_and_read_again(tmp_path):
    from medpfl.auditing.report import reread

    record, truth = make(tmp_path, Plan(batch_size=2))
    out = tmp_path / "runs" / "a"
    first = look(record, truth, out=out)
    second = look(record, truth, out=out)
    assert [r.date for r in first.rows] == [r.date for r in second.rows]
    assert first.summary == second.summary == reread(out).summary
    assert json.loads((out / "share/summary.json").read_text()) == [cell.to_dict() for cell in first.summary]
    with pytest.raises(InputError, match="the record is wrong"):
        look(record, draw_folder(tmp_path / "other", COUNTS[2], seed=4), out=out)


@pytest.mark.slow
def test_size_and_channels_are_the_record_s(tmp_path):
    record, truth = make(tmp_path, Plan())
    report = look(record, truth, size=40, channels=3)
    assert report.settings.data["shape"] == [1, 16, 16]


@pytest.mark.slow
def test_classes_are_the_record_s(tmp_path):
    """One image from the second class: alone, its folder would become the first."""
    truth = draw_folder(tmp_path / "truth", {"malignant": 1})
    data = ImageFolder(truth, size=16).load()
    network = LeNet("idlg").build(data.shape, 2, seed=11)
    ready, weights = prepare(network, Plan()), Weights.of(network)
    batch = Batch(data.images, torch.tensor([1]))
    played = client_round(ready, weights, batch, Plan(), NoDefense(), {}, torch.Generator())
    Record(played.sent, Plan(), weights, image_shape=data.shape, classes=CLASSES).save(tmp_path / "r")
    report = look(tmp_path / "r", truth)
    assert {row.label for row in report.rows} == {1}
    assert report.settings.record["difference"] < 1e-5


# --- what does not fit ----------------------------------------------------------------------------------------


def edit(path: Path, change=lambda tensors: tensors, **header) -> Path:
    """Rewrite the record with other tensors or another header."""
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    about = json.loads(metadata["medpfl-update"])
    metadata["medpfl-update"] = json.dumps({**about, **header})
    save_file(change(tensors), path, metadata)
    return path


def without(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def replaced(name, change):
    return lambda tensors: {**tensors, name: change(tensors[name])}


def added(name, shape):
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


MISFITS = [
    (without("update/0.weight"), r"0\.weight: a parameter without an update"),
    (without("parameter/0.weight"), r"0\.weight: an update without a parameter"),
    (replaced("update/0.bias", lambda t: t[:5].clone()), r"0\.bias: update \(5,\), parameter \(12,\)"),
    (replaced("update/0.bias", lambda t: t.long()), r"0\.bias: update torch.int64, parameter torch.float32"),
    (replaced("update/0.bias", lambda t: t / 0), r"0\.bias: update with values that are not finite"),
    (replaced("parameter/0.bias", lambda t: t * float("nan")), r"0\.bias: parameter with values that are not finite"),
    (added("sent_buffer/9.running_mean", 4), r"9\.running_mean: a sent buffer that the model does not have"),
    (
        lambda tensors: {**tensors, "extra": torch.zeros(1)},
        "contains a tensor 'extra' that does not belong in a record",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_a_record_that_does_not_fit_itself(tmp_path, change, message):
    record, truth = make(tmp_path, Plan())
    with pytest.raises(InputError, match=message):
        look(edit(record, change), truth)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": 9}, "a record of version 9, this MedPFL reads versions 1 to 2"),
        ({"kind": "difference"}, "the update is a difference, but a FedSGD plan sends a gradient"),
        ({"num_samples": 3}, "num_samples is 3, but the plan is for 1 images"),
        ({"clients": 3}, "num_samples is 1, but the plan is for 3 images"),
        ({"steps": {"runs": [[1, {"images": 1, "optimizer": ""}]], "images": 2}}, "num_samples is 1, but the plan is"),
        (
            {"steps": {"runs": [[2, {"images": 1, "optimizer": ""}]]}},
            "one gradient is sent, but the record states 2 steps",
        ),
        (
            {"steps": {"runs": [[1, {"images": 1, "optimizer": "Prox"}]]}, "kind": "difference"},
            "the optimizer is Prox; local_update knows SGD",
        ),
        ({"steps": {"runs": [[1, {"images": 1, "optimizer": "", "loss": ""}]]}}, "the loss is unknown"),
        ({"steps": {"runs": [], "nonsense": 1}}, "the header of .* is not valid"),
        ({"version": 1, "plan": {"algorithm": "FedProx"}}, "algorithm is 'FedProx'"),
        ({"version": 1, "plan": {"nonsense": 1}}, "the header of .* is not valid"),
        ({"format": "other"}, "the header of .* is damaged"),
    ],
)
def test_a_header_that_does_not_fit(tmp_path, header, message):
    record, truth = make(tmp_path, Plan())
    with pytest.raises(InputError, match=message):
        look(edit(record, **header), truth)


def rename(tensors):
    return {k.replace("7.weight", "head.weight"): v for k, v in tensors.items()}


def both(name, change):
    return lambda tensors: {k: change(v) if k.endswith(name) else v for k, v in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"7\.weight: in the model, not in the record\n  head\.weight: in the record, not in the model"),
        (both("/7.bias", lambda t: torch.zeros(3)), r"7\.bias: \(3,\) in the record, \(2,\) in the model"),
    ],
)
def test_a_record_that_does_not_fit_the_model_says_what_does_not(tmp_path, change, message):
    record, truth = make(tmp_path, Plan())
    with pytest.raises(InputError, match=f"the record does not fit the model:\n.*{message}"):
        look(edit(record, change), truth)


NORMAL, NORMAL_SPEC = ConvNet(4, 1, "batch"), "ConvNet(4, 1, 'batch')"
MEAN, VARIANCE = "0.1.running_mean", "0.1.running_var"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: {**added("buffer/9.running_var", 4)(tensors), "sent_buffer/9.running_var": torch.ones(4)},
            r"9\.running_var: in the record, not in the model",
        ),
        (
            lambda tensors: {k: t for k, t in tensors.items() if not k.endswith(MEAN)},
            rf"{MEAN}: in the model, not in the record",
        ),
        (both(VARIANCE, lambda t: t[:3].clone()), rf"{VARIANCE}: \(3,\) in the record, \(4,\) in the model"),
    ],
    ids=["foreign", "missing", "other shape"],
)
def test_batch_norm_statistics_that_are_not_the_model_s(tmp_path, change, message):
    record, truth = make(tmp_path, Plan(batch_size=2), model=NORMAL)
    with pytest.raises(InputError, match=f"the record does not fit the model:\n.*{message}"):
        look(edit(record, change), truth, model=NORMAL_SPEC)


@pytest.mark.parametrize(
    ("gone", "sends", "said"),
    [
        ([MEAN], True, f"lacks 1 of the model's 2 batch-norm statistics, such as '{MEAN}', which its plan sends"),
        ([MEAN, VARIANCE], True, "lacks 2 of the model's 2 batch-norm statistics"),
        ([MEAN, VARIANCE], False, ""),
        (["0.1.num_batches_tracked"], True, ""),
        ([], True, ""),
    ],
)
def test_statistics_that_a_plan_sends_and_a_record_lacks_are_noted(tmp_path, gone, sends, said):
    plan = Plan(batch_size=2) if sends else Plan(batch_size=2, sends=("num_samples",))
    path, _ = make(tmp_path, plan, model=NORMAL)
    kept = lambda tensors: {k: t for k, t in tensors.items() if k not in [f"sent_buffer/{name}" for name in gone]}  # noqa: E731
    note = unsent(Record.load(edit(path, kept)), plan)
    assert said in note
    assert bool(said) == bool(note)


@pytest.mark.slow
def test_the_wrong_model(tmp_path):
    record, truth = make(tmp_path, Plan())
    for model in ("LeNet('dlg')", "LeNet('cpl')", "ResNet(18)"):
        with pytest.raises(InputError, match="the record does not fit the model"):
            look(record, truth, model=model)


@pytest.mark.slow
def test_a_frozen_layer_that_the_record_trained(tmp_path):
    record, truth = make(tmp_path, Plan())
    network = LeNet("idlg").build((1, 16, 16), 2, seed=0)
    network[0].bias.requires_grad_(False)
    with pytest.raises(InputError, match=r"0\.bias: trained in the record only"):
        look(record, truth, model=network)


@pytest.mark.slow
def test_a_users_network_keeps_its_weights(tmp_path):
    record, truth = make(tmp_path, Plan())
    network = LeNet("idlg").build((1, 16, 16), 2, seed=0)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    look(record, truth, model=network)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b[:200], lambda b: b[:60] + b"\0" * 30 + b[90:]])
def test_a_damaged_record(tmp_path, damage):
    record, truth = make(tmp_path, Plan())
    record.write_bytes(damage(record.read_bytes()))
    with pytest.raises(InputError, match=r"cannot be read as a record|is a file, but no record|header of .* damaged"):
        look(record, truth)


def test_truth_of_the_wrong_number_shape_or_class(tmp_path):
    record, truth = make(tmp_path, Plan(batch_size=2))
    with pytest.raises(InputError, match="made from 2 images, but --truth holds 4"):
        look(record, draw_folder(tmp_path / "four", COUNTS[4]))
    with pytest.raises(InputError, match="--truth has a class 'other'; the record's are benign, malignant"):
        look(record, draw_folder(tmp_path / "other", {"benign": 1, "other": 1}))
    with pytest.raises(InputError, match=r"images of shape \(1, 16, 16\), but --truth gives \(1, 20, 20\): set --size"):
        look(record, ImageFolder(truth, size=20))
    with pytest.raises(InputError, match="there is no folder or record"):
        look(record, tmp_path / "nowhere")


def test_unreadable_truth_is_counted_out(tmp_path):
    record, truth = make(tmp_path, Plan(batch_size=2))
    (truth / "benign" / "0.png").write_bytes(b"junk")
    with pytest.raises(InputError, match="made from 2 images, but --truth holds 1"):
        look(record, truth)


def test_options_that_a_record_excludes(tmp_path):
    record, truth = make(tmp_path, Plan())
    with pytest.raises(InputError, match=r"use medpfl.audit_record\(record, truth, model\)"):
        audit("LeNet('idlg')", record, attacks=["iDLG(steps=2)"])
    asked = Experiment(data=str(record), model="LeNet('idlg')")
    with pytest.raises(InputError, match="set --truth to the folder"):
        perform(asked)
    with pytest.raises(InputError, match="leave out --weights"):
        perform(replace(asked, truth=str(truth), weights="w.pt"))
    with pytest.raises(InputError, match="truth goes with a record"):
        perform(replace(asked, data=str(truth), truth=str(truth)))
    with pytest.raises(InputError, match="this audits one model, but rounds were given"):
        perform(replace(asked, rounds="0,1"))
    with pytest.raises(InputError, match="a record was made under one defense"):
        look(record, truth, defenses=["LaplaceNoise(scale=lin(0.1, 0.2, 2))"])


@pytest.mark.slow
def test_a_record_of_a_residual_network(tmp_path):
    """The record also holds batch-norm statistics, and buffers that no state dict contains."""
    plan = Plan(batch_size=2)
    truth = draw_folder(tmp_path / "truth", COUNTS[2])
    data = ImageFolder(truth, size=16).load()
    network = ResNet(18).build(data.shape, 2, seed=1)
    ready, weights = prepare(network, plan), Weights.of(network)
    batch = Batch(data.images, data.labels)
    played = client_round(ready, weights, batch, plan, NoDefense(), {}, torch.Generator())
    Record(played.sent, plan, weights, image_shape=data.shape, classes=data.classes).save(tmp_path / "r")
    report = look(tmp_path / "r", truth, model="ResNet(18)", attacks=[Answers()])
    assert report.settings.record["difference"] < 1e-4


@pytest.mark.slow
def test_another_record_is_another_experiment(tmp_path):
    record, truth = make(tmp_path, Plan())
    look(record, truth, out=tmp_path / "runs" / "a")
    make(tmp_path, Plan(), defense=LaplaceNoise(0.1))
    with pytest.raises(InputError, match="other record"):
        look(record, truth, out=tmp_path / "runs" / "a", defenses=["LaplaceNoise(scale=0.1)"])


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["module.", "_module.", "_orig_mod.module.", "client_model."])
def test_a_record_of_a_wrapped_model(tmp_path, prefix):
    """All the client's names have the wrapper's prefix; the rows are the same as without."""
    plan = Plan(batch_size=2)
    record, truth = make(tmp_path, plan, model=ConvNet(width=4, depth=1, norm="batch"))
    options = {"model": "ConvNet(width=4, depth=1, norm='batch')", "attacks": ["iDLG(steps=3)"]}
    bare = look(record, truth, **options)
    held = Record.load(record)

    def wrapped(tensors):
        return {f"{prefix}{name}": t for name, t in tensors.items()}

    sent = Update(wrapped(held.update.tensors), held.update.kind, wrapped(held.update.buffers), held.update.num_samples)
    weights = Weights(wrapped(held.weights.parameters), wrapped(held.weights.buffers))
    Record(sent, plan, weights, image_shape=held.image_shape, classes=held.classes).save(record)
    assert plain(look(record, truth, **options).rows, "image") == plain(bare.rows, "image")


@pytest.mark.parametrize("kind", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_a_record_of_tensors_that_are_no_weights(tmp_path, kind):
    record, truth = make(tmp_path, Plan())
    content = load_file(record)
    name = next(name for name in content if name.startswith("update/"))
    with safe_open(record, "pt") as file:
        header = file.metadata()
    save_file({**content, name: content[name].to(kind)}, record, header)
    with pytest.raises(InputError, match=r"update that (holds complex numbers|is of torch.float8)"):
        look(record, truth)


# --- a record is another party's ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_record_cannot_run_code(tmp_path, monkeypatch):
    """Its header names a defense; no file, module or function that it names is touched."""
    marker = tmp_path / "marker"
    (tmp_path / "hostile.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef Evil(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for spec in (f"os:system('touch {marker}')", f"{tmp_path}/hostile.py:Evil()", "hostile:Evil", "hostile.Evil()"):
        record, truth = make(tmp_path, Plan(), defense=NOISE, defense_spec=spec)
        with pytest.raises(InputError, match="give --defense yourself if you trust that file"):
            look(record, truth)
        assert not marker.exists()
    report = look(record, truth, defenses=["LaplaceNoise(scale=0.5)"])
    assert len(report.summary) == 3, "what the auditor gives is taken in its place"
