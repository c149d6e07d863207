"""The view of a record: what cannot be checked is said, and nothing is repeated that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medpfl import InputError
from medpfl.core.records.origin import Source
from medpfl.core.records.record import Record
from medpfl.core.records.steps import Steps
from medpfl.core.records.truth import Truth
from medpfl.core.records.view import RecordView
from medpfl.core.types import Weights
from medpfl.inputs.network import network_of
from medpfl.models import LeNet
from medpfl.recording import check
from medpfl.recording.check import Case
from medpfl.recording.client import check_case
from medpfl.recording.record import make_record, state_of
from medpfl.recording.view import view_of
from medpfl.recording.watching.watch import watch
from tests.recording.loops import loader

MODEL = LeNet("idlg")
IMAGES = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(2))
LABELS = torch.tensor([1, 0, 1, 0])


def made() -> tuple[Record, Truth]:
    """Return a record of one step over four images, with its truth."""
    model = network_of(MODEL, (1, 16, 16), 2, 4)
    before = state_of(model)
    with watch(model, keep=True) as seen:
        train(model, loader(IMAGES, LABELS), epochs=1)
    truth = seen.truth()
    assert truth is not None
    return make_record(before, state_of(model), seen), truth


def train(model, data, epochs):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(epochs):
        for images, labels in data:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def stepped(record: Record, **changes) -> Record:
    """Return the record with other steps, which need not follow a plan."""
    own = record.steps
    return replace(record, plan=replace(own, steps=tuple(replace(step, **changes) for step in own.steps)))


def look(folder, record: Record, truth: Truth | None) -> RecordView:
    record.save(folder / "r.safetensors")
    kept = None if truth is None else truth.save(folder, "r.safetensors")
    return view_of(folder / "r.safetensors", kept, MODEL)


@pytest.mark.parametrize(
    ("place", "said"),
    [("client", ": give the one of the same name"), ("server", ", as is usual for a server's record")],
)
def test_a_truth_file_of_another_record_is_said(tmp_path, place, said):
    record, truth = made()
    found = look(tmp_path, replace(record, source=Source("Flower", {}, 1, place)), replace(truth, record="0" * 64))
    assert f"the truth file was kept for another record file{said}" in found.open[0]


SILENT = [
    {"filters": ("message_size_mod",)},
    {"defense": "NoDefense()"},
    {"defense": "GaussianNoise(0.1, where='server')"},
]


@pytest.mark.parametrize("stated", SILENT, ids=["a mod", "no defense", "a defense at the server"])
def test_what_changes_nothing_does_not_switch_the_check_off(tmp_path, stated):
    record, truth = made()
    record = replace(record, **stated)
    assert look(tmp_path, record, truth).verdict == "right"
    faster = replace(record, plan=replace(record.plan, learning_rate=1.0))
    found = look(tmp_path, faster, truth)
    assert found.verdict == "wrong"
    assert "the learning rate was 0.1, not 1" in found.finding
    unknown = replace(faster, filters=("OwnFilter()",), defense=None)
    assert look(tmp_path, unknown, truth).verdict == "unverified"


def test_a_record_that_does_not_fit_itself_is_not_repeated(tmp_path):
    record, truth = made()
    first = next(iter(record.update.tensors))
    sent = {name: t for name, t in record.update.tensors.items() if name != first}
    found = look(tmp_path, replace(record, update=record.update.replace(sent)), truth)
    assert found.verdict == "wrong"
    assert f"it does not fit itself: {first}: a parameter without an update" in found.finding


@pytest.mark.parametrize("known", [False, True], ids=["without an order", "with an order"])
def test_a_truth_with_fewer_images_than_a_step_takes_is_refused(tmp_path, known):
    record, truth = made()
    step = replace(record.steps.steps[0], images=1_000_000)
    record = replace(record, plan=Steps((step,)), update=replace(record.update, num_samples=None))
    kept = truth if known else replace(truth, order=None)
    with pytest.raises(InputError, match="the record's steps take 1000000 images, but --truth holds 4"):
        look(tmp_path, record, kept)


def test_batches_are_taken_one_by_one(monkeypatch):
    """The whole training, of many steps over the same images, is never in memory."""
    record, truth = made()
    kinds = []

    def replay(model, weights, steps, batches, generators):
        kinds.append(iter(batches) is batches)

    monkeypatch.setattr(check, "replay", replay)
    Case(network_of(MODEL, (1, 16, 16), 2, 4), record, truth).replays()
    assert kinds == [True]


def test_a_training_that_torch_refuses_is_said(tmp_path):
    record, truth = made()
    own = dict(record.steps.steps[0].settings)
    with pytest.raises(InputError, match=r"training cannot be repeated: .*learning rate"):
        look(tmp_path, stepped(record, settings={**own, "lr": -0.1}), truth)
    with pytest.raises(InputError, match="training cannot be repeated"):
        look(tmp_path, stepped(record, loss_settings={"foo": 1}), truth)
    case = Case(network_of(MODEL, (1, 16, 16), 2, 4), record, replace(truth, labels=truth.labels + 5))
    with pytest.raises(InputError, match="training cannot be repeated"):
        check_case(case)


def test_a_cause_that_torch_refuses_is_no_cause():
    """Nesterov's momentum takes no dampening, and the model has no output for a third class."""
    record, truth = made()
    own = dict(record.steps.steps[0].settings)
    odd = stepped(record, settings={**own, "momentum": 0.5, "dampening": 0.5})
    sent = odd.update.replace({name: t.flip(0) for name, t in odd.update.tensors.items()})
    case = Case(network_of(MODEL, (1, 16, 16), 2, 4), replace(odd, update=sent, classes=("a", "b", "c")), truth)
    assert check_case(case).verdict == "wrong"


def test_a_neighbor_with_another_buffer_is_no_cause():
    record, truth = made()
    buffers = {**record.weights.buffers, "extra": torch.zeros(1)}
    other = replace(record, weights=Weights(record.weights.parameters, buffers))
    faster = replace(record, plan=replace(record.plan, learning_rate=0.123))
    case = Case(network_of(MODEL, (1, 16, 16), 2, 4), faster, truth, {"other": other})
    assert check_case(case).verdict == "wrong"
