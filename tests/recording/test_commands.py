"""``medpfl record``, ``inspect`` and ``forget``, as a site uses them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import medpfl
from medpfl import Record, cli
from medpfl.data import ImageFolder
from medpfl.models import LeNet
from tests.auditing.audit_cases import draw_folder

SIZE = 16
PLAN = ("--batch-size", "2", "--learning-rate", "0.1", "--size", SIZE)
MODEL = ("--model", "LeNet('idlg')")


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("medpfl.core.messages.may_show", lambda stream: True)

    def call(*words):
        status = cli.main([str(word) for word in words])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out
        return status, shown.out, shown.err

    return call


@pytest.fixture
def site(tmp_path) -> Path:
    """Train as an app does, without MedPFL, and keep two checkpoints."""
    draw_folder(tmp_path / "truth", {"benign": 1, "malignant": 1})
    data = ImageFolder(tmp_path / "truth", size=SIZE).load()
    model = LeNet("idlg").build(data.shape, 2, seed=4)
    torch.save(model.state_dict(), tmp_path / "before.pt")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    nn.functional.cross_entropy(model(data.images), data.labels).backward()
    optimizer.step()
    torch.save(model.state_dict(), tmp_path / "after.pt")
    return tmp_path


def recorded(site, run, *words, before="before.pt", after="after.pt"):
    truth = ("--truth", site / "truth")
    return run("record", site / before, site / after, *truth, *MODEL, *PLAN, "--out", site / "out", *words)


def files(site) -> tuple[Path, Path]:
    (record,), (truth,) = (site / "out").glob("*.safetensors"), (site / "out" / "private-truth").iterdir()
    return record, truth


def test_two_checkpoints_make_a_right_record(site, run):
    status, out, _ = recorded(site, run, "--round", "3")
    assert (status, "This record is right." in out) == (0, True)
    record, truth = files(site)
    assert record.name.startswith("round-0003-")
    assert truth.name == record.name
    held = Record.load(record)
    assert held.plan == medpfl.Plan("FedAvg", 2, 2, learning_rate=0.1)
    assert (held.image_shape, held.source.framework) == ((1, SIZE, SIZE), "two checkpoints")
    assert str(site).encode() not in record.read_bytes()


@pytest.mark.slow
def test_the_record_is_audited_with_its_truth(site, run):
    recorded(site, run)
    record, truth = files(site)
    words = ("audit", record, "--truth", truth, *MODEL, "--attack", "iDLG(steps=3)", "--quiet")
    assert run(*words)[0] == 0
    assert run("audit", record, "--truth", site / "truth", *words[4:])[0] == 0


@pytest.mark.slow
def test_a_wrong_plan_is_named_and_stops_the_audit(site, run):
    status, out, _ = recorded(site, run, "--learning-rate", "1.0")
    assert status == 2
    assert "the learning rate was 0.1, not 1 (a factor of 0.1)" in out
    record, truth = files(site)
    status, _, err = run("audit", record, "--truth", truth, *MODEL, "--attack", "iDLG(steps=3)")
    assert status == 2
    assert "the record is wrong, so no attack was run: the learning rate was 0.1" in err


def wrapped(state):
    return {f"module.{name}": value for name, value in state.items()}


CHECKPOINTS = {
    "FLARE": lambda state: {"model": state, "train_conf": {"train": {"model": "Net"}}},
    "Lightning": lambda state: {
        "epoch": 1,
        "global_step": 2,
        "state_dict": {f"net.{k}": v for k, v in state.items()},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
    },
    "DataParallel": wrapped,
    "float64": lambda state: {k: v.double() for k, v in state.items()},
}


@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints_of_frameworks(site, run, change):
    for name in ("before", "after"):
        torch.save(change(torch.load(site / f"{name}.pt")), site / f"{name}.ckpt")
    status, out, err = recorded(site, run, before="before.ckpt", after="after.ckpt")
    assert (status, "This record is right." in out) == (0, True), out + err


def test_safetensors_and_no_model_and_no_truth(site, run):
    for name in ("before", "after"):
        save_file(torch.load(site / f"{name}.pt"), site / f"{name}.safetensors")
    words = ("record", site / "before.safetensors", site / "after.safetensors", "--out", site / "out")
    status, out, _ = run(*words, "--local-images", "2", "--batch-size", "2")
    assert status == 0
    assert "could not be verified" in out
    assert "without --truth and --model" in out
    assert not (site / "out" / "private-truth").exists()


@pytest.mark.parametrize(("content", "reason"), [(b"", "the file is empty"), (b"hello", "another kind, or damaged")])
def test_a_file_that_is_no_checkpoint_is_named_in_words(site, run, content, reason):
    (site / "after.pt").write_bytes(content)
    status, _, err = recorded(site, run)
    assert status == 2
    assert f"{reason})" in err


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil-ran"),)


@pytest.mark.slow
def test_a_checkpoint_with_code_is_refused(site, run, monkeypatch):
    monkeypatch.chdir(site)
    (site / "after.pt").write_bytes(pickle.dumps({"model": Evil()}))
    status, _, err = recorded(site, run)
    assert status == 2
    assert "is not a weights file" in err
    torch.save({"model": Evil()}, site / "after.pt")
    assert "could run code" in recorded(site, run)[2]
    assert not (site / "evil-ran").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mean", "0.5"), "--mean and --std belong together"),
        (("--mean", "x", "--std", "1"), "--mean is x: give a number for each channel"),
        (("--mean", "0.5", "--std", "0"), "--std is 0: pixels are divided by it"),
        (("--mean", "0.5,0.5", "--std", "1"), "--mean has 2 numbers and --std 1"),
        (("--mean", "0.5,0.5,0.5", "--std", "1,1,1"), "have 3 numbers, but the images 1 channel"),
        (("--local-images", "4"), "--local-images is 4, but --truth holds 2 images"),
        (("--nesterov",), "nesterov needs a momentum"),
        (("--model", "LeNet('cpl')"), "the state before the training has no"),
    ],
)
def test_bad_options(site, run, words, message):
    status, out, err = recorded(site, run, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert not (site / "out").exists()


def test_other_states_are_refused(site, run):
    torch.save({"x": torch.zeros(2)}, site / "before.pt")
    truth = ("--truth", site / "truth")
    status, _, err = run("record", site / "before.pt", site / "after.pt", *truth, *PLAN, "--out", site / "out")
    assert status == 2
    assert "'x' is only in the state before the training" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "LeNet('idlg', classes=3)"), "the record does not fit the model"),
        (("--channels", "3"), "it fails in layer '0' (Conv2d). It takes images with --channels 1"),
    ],
)
@pytest.mark.parametrize("machine", [(), ("--json",)])
def test_a_failed_attempt_leaves_nothing(site, run, words, message, machine):
    """What can be checked is checked before a record and private images are written."""
    model = site / "plain.py"
    made = "LeNet('idlg').build((1, 16, 16), 2, 0)"
    model.write_text(f"from medpfl.models import LeNet\n\ndef net():\n    return {made}\n")
    words = words if "--model" in words else (*words, "--model", f"{model}:net")
    status, _, err = recorded(site, run, *words, *machine)
    assert status == 2
    assert message in " ".join(err.split())
    assert not (site / "out").exists()


@pytest.mark.parametrize("truth", [True, False])
def test_equal_checkpoints_are_named(site, run, truth):
    words = ("record", site / "after.pt", site / "after.pt", "--out", site / "out")
    status, _, err = recorded(site, run, before="after.pt") if truth else run(*words)
    assert status == 2
    assert "the two checkpoints hold equal parameters" in err
    assert not (site / "out").exists()


def test_a_record_goes_with_its_truth(site, run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medpfl.core.records.truth.put", full)
    assert recorded(site, run)[0] == 2
    assert [path for path in (site / "out").rglob("*") if path.is_file()] == []


def test_a_wrong_record_is_kept_and_the_folder_with_images_is_named(site, run):
    for machine in ((), ("--json",)):
        status, _, err = recorded(site, run, "--learning-rate", "1.0", *machine)
        assert status == 2
        assert f"its private images in '{site / 'out' / 'private-truth'}'" in err
        assert f"medpfl forget {site / 'out'}" in err


@pytest.mark.slow
def test_inspect_as_json_and_page(site, run):
    recorded(site, run)
    record, truth = files(site)
    page = site / "record.html"
    status, out, _ = run("inspect", record, "--truth", truth, *MODEL, "--json", "--page", page)
    found = json.loads(out)
    assert (status, found["verdict"]) == (0, "right")
    assert found["difference"] < 1e-5
    text = page.read_text()
    assert "This record is right." in text
    assert str(site) not in text + out
    assert "benign" not in text + out


def test_inspect_alone(site, run):
    recorded(site, run)
    status, out, _ = run("inspect", files(site)[0])
    assert status == 0
    assert "SGD(lr=0.1)" in out
    assert "not verifiable beyond" in out.lower()


def test_the_truth_in_its_place_is_used_and_named(site, run):
    recorded(site, run)
    record, truth = files(site)
    status, out, err = run("inspect", record, *MODEL)
    assert (status, "This record is right." in out) == (0, True)
    assert f"note: the truth is '{truth}', in its place beside the record" in err
    status, out, err = run("audit", record, *MODEL, "--attack", "iDLG(steps=1)", "--dry-run")
    assert status == 0
    assert f"note: the truth is '{truth}'" in err
    truth.unlink()
    status, _, err = run("audit", record, *MODEL, "--attack", "iDLG(steps=1)", "--dry-run")
    assert status == 2
    assert "no truth file of its name lies in private-truth beside it" in err


@pytest.mark.slow
def test_forget(site, run):
    recorded(site, run)
    record, truth = files(site)
    (site / "out" / "private-truth" / "note.txt").write_text("of somebody else")
    status, out, _ = run("forget", site / "out")
    assert status == 0
    assert "deleted 1 truth file" in out
    assert f"remains: {record}" in out
    assert (truth.exists(), record.exists()) == (False, True)
    assert (truth.parent / "note.txt").exists(), "it is no truth file"
    assert "deleted 0 truth files" in run("forget", site / "out")[1]
    assert "there is no folder" in run("forget", site / "nowhere")[2]


def test_a_link_to_a_truth_elsewhere_is_not_followed(site, run):
    recorded(site, run)
    _, truth = files(site)
    (site / "links").mkdir()
    (site / "links" / "x.safetensors").symlink_to(truth)
    assert "deleted 0 truth files" in run("forget", site / "links")[1]
    assert truth.exists()


@pytest.mark.slow
def test_pixels_that_the_loader_normalized(site, run):
    """The app normalizes: without --mean and --std the cause is named, with them the record is right."""
    data = ImageFolder(site / "truth", size=SIZE).load()
    model = LeNet("idlg").build(data.shape, 2, seed=4)
    nn.functional.cross_entropy(model((data.images - 0.5) / 0.5), data.labels).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    torch.save(model.state_dict(), site / "after.pt")
    status, out, _ = recorded(site, run)
    assert status == 2
    assert "another range (-1 to 1, as by Normalize(0.5, 0.5))" in out
    assert recorded(site, run, "--mean", "0.5", "--std", "0.5")[0] == 0


@pytest.mark.slow
def test_images_resized_by_other_software_are_refused_with_the_remedy(site, run):
    """The app resized large originals with another filter than MedPFL's."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    images = []
    for place, name in enumerate(("benign", "malignant")):
        torch.manual_seed(place)
        small = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 8), 64, mode="bicubic")[0, 0].clamp(0, 1)
        original = Image.fromarray((small * 255).byte().numpy())
        original.save(site / "truth" / name / "0.png")
        images.append(pil_to_tensor(original.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) / 255)
    model = LeNet("idlg").build((1, SIZE, SIZE), 2, seed=4)
    nn.functional.cross_entropy(model(torch.stack(images)), torch.tensor([0, 1])).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    torch.save(model.state_dict(), site / "after.pt")
    status, out, _ = recorded(site, run)
    difference = json.loads(run("inspect", *files(site)[:1], "--truth", files(site)[1], *MODEL, "--json")[1])[
        "difference"
    ]
    assert status or difference < 1e-3 or "could not be verified" in out
    if difference > 1e-3:
        assert "resized or read by other software" in " ".join(out.split())
        assert "give --truth the pixels at the model's own size" in " ".join(out.split())
