"""Watching a loop: what is recorded, and what is refused with its reason."""

from __future__ import annotations

import gc
from copy import deepcopy

import pytest
import torch
from torch import nn

import medpfl
from medpfl import InputError, Plan, Record
from medpfl.core.records.truth import Truth
from medpfl.recording.watching import watch as watching
from medpfl.recording.watching.intake import Intake
from medpfl.recording.watching.losses import LossWatch, plain
from medpfl.recording.watching.watch import Watch, watch
from tests.recording.loops import IMAGES, LABELS, loader, network, train


def reason(model=None, **options) -> str:
    """Return why an audit cannot attack what a loop did."""
    model = model or network()
    with watch(model) as seen:
        train(model, **options)
    return seen.steps().irregularity()


def test_a_loop_is_its_plan():
    model = network(drop=0.3)
    with watch(model) as seen:
        train(model, weight_decay=0.01, nesterov=True, loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    steps = seen.steps()
    assert [step.images for step in steps.steps] == [4, 4, 2] * 2
    assert steps.steps[0].modes == {"1": True, "4": True}
    momentum = {"momentum": 0.9, "nesterov": True}
    assert steps.regular() == Plan(
        "FedAvg", 4, 10, 2, learning_rate=0.1, weight_decay=0.01, label_smoothing=0.1, **momentum
    )
    assert seen.problems == {}
    assert seen.truth() is None, "pixels are kept on request only"
    assert (seen.pixels.low, seen.pixels.high) == (0, 1)


def test_a_record_and_its_truth(tmp_path):
    model = network(drop=0.3)
    with medpfl.record(tmp_path, model, truth=True, classes=["a", "b", "c"]):
        train(model)
    (path,) = tmp_path.glob("*.safetensors")
    record = Record.load(path)
    assert record.misfits() == []
    assert (record.image_shape, record.classes, record.update.num_samples) == ((1, 8, 8), ("a", "b", "c"), 10)
    assert record.source.framework == "torch"
    assert int(record.update.buffers["1.num_batches_tracked"]) == 6
    assert int(record.weights.buffers["1.num_batches_tracked"]) == 0
    after = dict(model.named_parameters())
    for name, difference in record.update.tensors.items():
        torch.testing.assert_close(record.weights.parameters[name] + difference, after[name].detach())
    (kept,) = (tmp_path / "private-truth").iterdir()
    truth = Truth.load(kept)
    assert truth.images.shape == (10, 1, 8, 8)
    assert len(truth.generators) == 6
    expected = [image for _ in range(1) for image, _ in loader()]
    assert torch.equal(truth.images[truth.order[:4]], expected[0])
    place = {bytes(image.numpy()): int(label) for image, label in zip(IMAGES, LABELS, strict=True)}
    assert [place[bytes(i.numpy())] for i in truth.images] == truth.labels.tolist()


def test_the_record_holds_no_pixel(tmp_path):
    model = network()
    images = IMAGES.clone()
    images[:, 0, 0, 0] = 0.123456789
    with medpfl.record(tmp_path, model, truth=True):
        train(model, loader(images))
    (path,) = tmp_path.glob("*.safetensors")
    secrets = [image.numpy().tobytes()[:16] for image in images] + [LABELS.numpy().tobytes()[:32]]
    assert not any(secret in path.read_bytes() for secret in secrets)
    (kept,) = (tmp_path / "private-truth").iterdir()
    assert all(secret in kept.read_bytes() for secret in secrets[:-1])
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_without_truth_nothing_private_is_written(tmp_path):
    model = network()
    with medpfl.record(tmp_path, model):
        train(model)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


REFUSED = {
    "Adam": (lambda m: {"optimizer": torch.optim.Adam(m.parameters())}, "the optimizer is Adam"),
    "clipping": (
        lambda m: {"between": lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e-3)},
        "the gradient was clipped",
    ),
    "noise": (
        lambda m: {"between": lambda m: [p.grad.add_(torch.randn_like(p)) for p in m.parameters()]},
        "the gradient was changed",
    ),
    "class weights": (lambda m: {"loss": nn.CrossEntropyLoss(torch.tensor([1.0, 2, 3]))}, "the loss has the setting"),
    "sum": (lambda m: {"loss": nn.CrossEntropyLoss(reduction="sum")}, "reduction='sum'"),
    "own loss": (
        lambda m: {"loss": lambda out, y: -out.log_softmax(1).gather(1, y[:, None]).mean()},
        "the loss is unknown",
    ),
    "mse": (
        lambda m: {"loss": lambda out, y: nn.functional.mse_loss(out, nn.functional.one_hot(y, 3).float())},
        "the loss is mse_loss",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_no_plan_has_is_said(case):
    options, message = case
    model = network()
    assert message in reason(model, **options(model))


def test_clipping_that_changes_nothing_is_none():
    assert reason(between=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e6)) == ""


def test_a_changing_learning_rate():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    with watch(model) as seen:
        for images, labels in loader(batch=2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    assert "such as the learning rate, changes between steps" in seen.steps().irregularity()
    assert [step.settings["lr"] for step in seen.steps().steps][:3] == pytest.approx([0.1, 0.1, 0.01])


def test_a_frozen_batch_norm_beside_dropout():
    model = network(drop=0.3)
    original = model.train

    def half(mode=True):
        original(mode)
        model[1].eval()
        return model

    model.train = half
    with watch(model) as seen:
        train(model)
    assert "'1' is in eval mode, others are in train mode" in seen.steps().irregularity()


def test_momentum_from_an_earlier_round():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer=optimizer)
    assert "carried=True" in reason(model, optimizer=optimizer)


def test_accumulated_gradients():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model) as seen:
        for place, (images, labels) in enumerate(loader(batch=2)):
            nn.functional.cross_entropy(model(images), labels).backward()
            if place % 2:
                optimizer.step()
                optimizer.zero_grad()
    assert "accumulates the gradients of 2 passes" in seen.steps().irregularity()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = network()
    optimizer, scaler = (
        torch.optim.SGD(model.parameters(), 0.1),
        torch.amp.GradScaler("cpu", enabled=dtype.itemsize == 2),
    )
    with watch(model) as seen:
        for images, labels in loader():
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = nn.functional.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert f"under autocast in {str(dtype).removeprefix('torch.')}" in seen.steps().irregularity()


def test_autocast_inside_of_the_model():
    model = network()
    inside = model.forward

    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return inside(x)

    model.forward = forward
    assert "under autocast" in reason(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model():
    model = network()
    fast = torch.compile(model, backend="eager")
    with watch(fast) as seen:
        train(fast)
    assert seen.steps().regular() == Plan("FedAvg", 4, 10, 2, learning_rate=0.1, momentum=0.9)
    assert seen.parameters == tuple(name for name, _ in model.named_parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_opacus():
    from opacus import PrivacyEngine

    model = network(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    private = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "poisson_sampling": False}
    wrapped, optimizer, data = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader(), **private
    )
    with watch(wrapped) as seen:
        train(wrapped, data, optimizer=optimizer)
    assert "the gradient was changed between backward pass and step" in seen.steps().irregularity()


def test_activation_checkpointing_is_one_pass():
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(checkpoint(self.body, x.flatten(1), use_reentrant=False).tanh())

    assert reason(Net()) == ""


def test_a_model_that_is_not_given_is_the_one_that_trains():
    model = network()
    with watch() as seen:
        train(model)
    assert seen.model is model
    assert seen.steps().regular().images == 10


def test_augmented_images_are_images_of_one_epoch():
    """Each epoch's images differ, so that the update is that of one long epoch."""
    model = network()
    noisy = [(x + 0.01 * e, y) for e in range(2) for x, y in loader(batch=5)]
    with watch(model) as seen:
        train(model, noisy, epochs=1)
    assert seen.steps().regular() == Plan("FedAvg", 5, 20, 1, learning_rate=0.1, momentum=0.9)


def test_nothing_to_watch():
    model = network()
    with watch(model) as seen:
        model(IMAGES)
    with pytest.raises(InputError, match="no training step was seen"):
        seen.steps()


def test_an_error_in_the_loop_leaves_no_hook():
    from torch.nn.modules import module as places

    model = network()
    before = len(places._global_forward_pre_hooks)
    with pytest.raises(RuntimeError), watch(model):
        train(model, [(torch.rand(2, 1, 3, 3), LABELS[:2])])
    assert len(places._global_forward_pre_hooks) == before
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


def test_what_is_no_image_is_said():
    model = nn.Linear(3, 2)
    with watch(model, keep=True) as seen:
        nn.functional.cross_entropy(model(torch.rand(4, 3)), torch.tensor([0, 1, 1, 0])).backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    assert "a step has no image" in seen.steps().irregularity()
    assert any("no batch of images" in problem for problem in seen.problems)
    assert seen.truth() is None


def test_settings_that_are_no_numbers_stop_nothing():
    assert [plain(one) for one in (["fc.weight"], float("nan"), float("inf"), 10**400, [10**400])] == [
        "list",
        "nan",
        "inf",
        10**400,
        "list",
    ]
    model = network()
    groups = [{"params": [p], "names": [name], "name": "Mueller"} for name, p in model.named_parameters()]
    with watch(model) as seen:
        train(model, optimizer=torch.optim.SGD(groups, 0.1))
    assert seen.steps().regular() == Plan("FedAvg", 4, 10, 2, learning_rate=0.1)
    assert "Mueller" not in repr(seen.steps())


class Many(torch.optim.SGD):
    """An optimizer with more settings than a record may hold."""

    def __init__(self, parameters):
        super().__init__(parameters, 0.1)
        self.defaults |= {f"s{i}": i for i in range(50)}
        self.param_groups[0].update(self.defaults)


def broken(*_, **__):
    raise RuntimeError("planted")


PLACES = [(Watch, "_is_ours"), (Watch, "_trains"), (Watch, "_step"), (Intake, "take"), (watching, "_first")]


@pytest.mark.parametrize(("owner", "name"), [*PLACES, (LossWatch, "seen"), (None, "")])
def test_an_error_of_the_watch_stops_no_training_and_leaves_no_false_record(tmp_path, monkeypatch, capsys, owner, name):
    model = network()
    other = deepcopy(model)
    train(other, optimizer=torch.optim.SGD(other.parameters(), 0.1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1) if owner else Many(model.parameters())
    if owner is LossWatch:
        monkeypatch.setattr("medpfl.recording.watching.losses._loss_call", broken)
    elif owner:
        monkeypatch.setattr(owner, name, broken)
    with medpfl.record(tmp_path, model, truth=True) as seen:
        train(model, optimizer=optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert seen.broken
    assert seen.truth() is None
    assert "the training was not seen to its end: the watch broke" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_fails_after_the_training_is_a_note(tmp_path, monkeypatch, capsys):
    model = network()
    with medpfl.record(tmp_path / "nothing", model):
        pass
    assert "no training step was seen" in capsys.readouterr().err
    monkeypatch.setattr(Record, "save", broken)
    with medpfl.record(tmp_path, model):
        train(model)
    assert "this update was not recorded" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name another one"), medpfl.record(tmp_path / "file", model):
        pytest.fail("the folder is checked before the training")


def test_passes_without_a_step_are_not_kept():
    def alive():
        return {id(one) for one in gc.get_objects() if type(one) is watching._Pass}

    model, before = network(), alive()
    with watch(model, keep=True) as seen:
        train(model, epochs=1)
        for _ in range(30):
            nn.functional.cross_entropy(model(IMAGES), LABELS)  # a validation with gradients
        assert len(alive() - before) <= 1
        train(model, epochs=1)
    assert [step.images for step in seen.steps().steps] == [4, 4, 2] * 2
    assert len(seen.truth().images) == 10


def test_backward_passes_without_a_step_are_limited(monkeypatch):
    monkeypatch.setattr(watching, "_MOST_PASSES", 3)
    model = network()
    with watch(model) as seen:
        for _ in range(5):
            model(IMAGES).sum().backward()
        assert len(seen._used) == 3
    assert any("the first ones are missing" in problem for problem in seen.problems)


def test_passes_are_recorded_in_their_order_whatever_that_of_the_backward_passes():
    model = network(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, keep=True) as seen:
        losses = [nn.functional.cross_entropy(model(x), y) for x, y in zip(IMAGES.split(5), LABELS.split(5))]  # noqa: B905
        for loss in losses[::-1]:
            loss.backward()
        optimizer.step()
    assert torch.equal(seen.truth().images, IMAGES)


def test_a_training_that_diverges_is_seen_to_its_end():
    model = network(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.param_groups[0]["lr"] = float("nan")
    with watch(model) as seen:
        train(model, optimizer=optimizer)
    assert not seen.broken
    assert {(step.settings["lr"], step.change) for step in seen.steps().steps} == {("nan", "")}
