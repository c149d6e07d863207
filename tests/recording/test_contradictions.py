"""Records that contradict themselves are wrong without any replay; no right record contradicts itself."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from medpfl.core.records.origin import Pixels
from medpfl.core.records.record import Record
from medpfl.recording.contradictions import looked
from medpfl.recording.record import UpdateFacts, make_record, state_of
from medpfl.recording.view import view_of
from medpfl.recording.watching.watch import watch

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.ReLU6, nn.Identity)


def network(draw: random.Random, channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(draw.choice([1, 2])):
        layers.append(
            nn.Conv2d(channels, 4, 3, padding=draw.choice([0, 1]), padding_mode=draw.choice(["zeros", "reflect"]))
        )
        channels = 4
        layers += [draw.choice(ACTIVATIONS)()] if draw.random() < 0.3 else []
        layers.append(nn.BatchNorm2d(4, momentum=draw.choice([0.1, 1.0, None]), affine=draw.random() < 0.8))
        layers.append(draw.choice(ACTIVATIONS)())
        layers += [draw.choice([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.Dropout(0.3)])] * draw.choice([0, 1])
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes))


def drawn(seed: int):
    """Return a network, and the record and the truth of a training with random settings, some of them chaotic."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    channels, classes, count = draw.choice([1, 3]), draw.choice([2, 5]), draw.choice([2, 4, 9])
    model, batch = network(draw, channels, classes), draw.choice([3, count]) if count == 9 else 2
    images = torch.rand(count, channels, 6, 6)
    images = draw.choice([images, images * 2 - 1, images * 255, (images > 0.5).float()])
    labels = torch.randint(0, classes, (count,)).sort().values
    momentum = draw.choice([0.0, 0.9])
    settings = {"momentum": momentum, "weight_decay": draw.choice([0, 0, 0.1])}
    settings |= {"nesterov": True} if momentum and draw.random() < 0.3 else {"dampening": draw.choice([0, 0.3])}
    optimizer = torch.optim.SGD(model.parameters(), 10 ** draw.uniform(-3, 1.5), **settings)
    smoothing, order = draw.choice([0, 0.3]), draw.choice([torch.arange(count), torch.randperm(count)])
    before = state_of(model)
    with watch(model, keep=True) as seen:
        model.train(draw.random() < 0.9)
        for _ in range(draw.choice([1, 1, 2])):
            for index in order.split(batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[index]), labels[index], label_smoothing=smoothing).backward()
                optimizer.step()
    return model, make_record(before, state_of(model), seen), seen.truth()


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_no_right_record_contradicts_itself(block):
    for seed in range(10 * block, 10 * block + 10):
        model, record, truth = drawn(seed)
        if not all(t.isfinite().all() for t in (*record.update.tensors.values(), *record.update.buffers.values())):
            continue
        assert looked(record).wrong is None
        for known in (None, truth, replace(truth, order=None)):
            assert looked(record, model, known).wrong is None, seed


IMAGES = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def trained(images=IMAGES, steps=1, rate=0.1, between=1):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))
    optimizer, before = torch.optim.SGD(model.parameters(), rate), state_of(model)
    with watch(model, keep=True) as seen:
        for place in range(steps * between):
            nn.functional.cross_entropy(model(images), LABELS).backward()
            if (place + 1) % between == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model, make_record(before, state_of(model), seen), seen.truth()


def bias(record: Record, change) -> Record:
    tensors = record.update.tensors
    return replace(record, update=record.update.replace({**tensors, "4.bias": change(tensors["4.bias"])}))


def buffer(record: Record, name: str, change) -> Record:
    held = record.update.buffers
    return replace(record, update=replace(record.update, buffers={**held, name: change(held[name])}))


@pytest.mark.parametrize("steps", [1, 4])
def test_a_bias_whose_changes_do_not_cancel_was_changed_after_the_training(steps):
    model, record, _ = trained(steps=steps)
    facts = looked(record, model).facts
    assert "the changes of the last layer's bias have the sum that the loss gives" in facts
    wrong = looked(bias(record, lambda t: t.where(t > 0, 0)), model).wrong
    assert "the changes of the last layer's bias '4.bias' sum to" in wrong.text


def test_weight_decay_that_is_not_stated_moves_the_sum():
    torch.manual_seed(2)
    model, optimizer = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), None
    optimizer, before = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5), state_of(model)
    with watch(model) as seen:
        nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
    record = make_record(before, state_of(model), seen, facts=UpdateFacts(num_samples=6))
    assert looked(record, model).wrong is None
    other = replace(record, plan=replace(record.plan, weight_decay=0.0))
    assert "sum to" in looked(other, model).wrong.text


def test_a_rate_that_cannot_explain_the_bias():
    model, record, _ = trained(rate=1.0)
    slow = replace(record, plan=replace(record.plan, learning_rate=0.01))
    assert "changed more than the learning rate and the number of steps allow" in looked(slow, model).wrong.text


def test_labels_of_more_images_than_the_record_states():
    """Three labels need three images, and the labels of the truth must be those."""
    model, record, truth = trained()
    sharp = torch.tensor([-0.6, 0.9, -0.3]) * 0.1
    alone = replace(record, plan=replace(record.plan, batch_size=1, local_images=1))
    alone = replace(alone, update=replace(alone.update, num_samples=1))
    assert (
        "at least 2 images, but the record was made from 1" in looked(bias(alone, lambda t: -sharp), model).wrong.text
    )
    low = bias(record, lambda t: torch.tensor([0.09, -0.05, -0.04]))  # nine in ten images have label 0
    assert looked(low, model).wrong is None
    for known in (truth, replace(truth, order=None)):
        assert "the labels of the truth are not those behind the update" in looked(low, model, known).wrong.text


@pytest.mark.parametrize("name", ["mean", "var"])
def test_pixels_outside_of_the_stated_range_show_in_the_first_batch_norm(name):
    model, record, _ = trained(IMAGES * 255)
    assert looked(record, model).wrong is None
    assert "batch norm's means and variances lie in the range" in looked(record, model).facts[1]
    stated = replace(record, pixels=Pixels())
    wrong = looked(stated, model).wrong
    assert "after the training is" in wrong.text
    assert "state how pixels enter the model" in str(wrong)
    moved = buffer(trained()[1], f"1.running_{name}", lambda t: t + 10)
    assert f"'1.running_{name}' after the training is larger than any training" in looked(moved, model).wrong.text


def test_several_steps_bound_only_what_the_weights_do_not_move():
    model, record, _ = trained(steps=3)
    assert looked(buffer(record, "1.running_mean", lambda t: t + 10), model).wrong is None
    tanh = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    optimizer, before = torch.optim.SGD(tanh.parameters(), 1.0), state_of(tanh)
    with watch(tanh) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(tanh(IMAGES), LABELS).backward()
            optimizer.step()
    record = make_record(before, state_of(tanh), seen)
    assert looked(record, tanh).wrong is None
    assert "larger than any" in looked(buffer(record, "2.running_mean", lambda t: t + 1), tanh).wrong.text


def test_passes_of_accumulated_gradients_count():
    model, record, _ = trained(steps=2, between=3)
    assert [step.passes for step in record.steps.steps] == [3, 3]
    assert looked(record).wrong is None
    assert looked(record, model).wrong is None
    short = buffer(record, "1.num_batches_tracked", lambda t: t - 1)
    assert "says 5 steps" in looked(short).wrong.text


def test_a_counter_of_a_layer_that_is_not_called_is_no_evidence():
    _, record, _ = trained()
    more = {**record.update.buffers, "9.num_batches_tracked": torch.tensor(0)}
    before = replace(record.weights, buffers={**record.weights.buffers, "9.num_batches_tracked": torch.tensor(0)})
    assert looked(replace(record, weights=before, update=replace(record.update, buffers=more))).wrong is None


def test_tensors_that_change_between_two_layers_have_no_bound():
    """The network writes into a tensor, or computes a new one, between the layers."""

    class Net(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)
            self.change = change

        def forward(self, x):
            x = self.change(self.first(x))
            return self.last(self.norm(x).flatten(1))

    for change in (lambda x: x.mul_(100), lambda x: x * 100, lambda x: x + 50):
        model = Net(change)
        optimizer, before = torch.optim.SGD(model.parameters(), 0.1), state_of(model)
        with watch(model) as seen:
            nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
            optimizer.step()
        assert looked(make_record(before, state_of(model), seen), model).wrong is None


def test_inspect_without_truth_finds_what_the_model_contradicts(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))\n"
    )
    from medpfl.inputs.parts import model_of

    _, record, _ = trained()
    model = model_of(f"{tmp_path}/net.py:make")
    record.save(tmp_path / "right.safetensors")
    found = view_of(tmp_path / "right.safetensors", model=model)
    assert (found.verdict, found.finding) == ("unverified", "")
    assert len(found.facts) == 3
    pruned = bias(record, lambda t: t.where(t > 0, 0))
    pruned.save(tmp_path / "wrong.safetensors")
    assert view_of(tmp_path / "wrong.safetensors", model=model).verdict == "wrong"
    replace(pruned, filters=("PercentilePrivacy(percentile=10)",)).save(tmp_path / "told.safetensors")
    told = view_of(tmp_path / "told.safetensors", model=model)
    assert told.verdict == "unverified"
    assert "PercentilePrivacy(percentile=10) may have done so" in told.open[0]
