"""Label counts of batches, from the last layer's gradient."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from medpfl.attacks.label_counts import clients
from medpfl.attacks.label_counts.clients import Head, made_up
from medpfl.attacks.label_counts.evidence import Gradient, best_counts, classes_of, counts_of, rounded
from medpfl.attacks.label_counts.phantoms import phantoms
from medpfl.attacks.matching.labels import LastLayer, last_layer
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.models import ConvNet, LeNet
from tests.attacks.scenes import scene, smooth

BATCH = 8


def drawn(victims, images, classes, seed):
    """Return labels (V, N) with uneven counts."""
    chances = torch.arange(1.0, classes + 1).expand(victims, -1)
    return chances.multinomial(images, replacement=True, generator=torch.Generator().manual_seed(seed))


def inferred(seen):
    """Return the inferred classes (V, N)."""
    found = LastLayer().infer(seen, torch.zeros(2, *seen.image_shape))
    assert found is not None
    return found


def _head(seen):
    """Return the names of the last layer's weight and bias."""
    weight, bias = last_layer(seen)
    assert weight is not None
    return Head(weight, bias)


def share_exact(network, plan, classes, victims=6, seed=0, change=lambda update: update):
    """Return the share of victims whose counts were found."""
    labels = drawn(victims, plan.images, classes, seed)
    images = smooth(labels.numel(), seed=seed).view(*labels.shape, 1, 12, 12)
    seen = scene(network, images, labels, plan, classes=classes)
    seen = replace(seen, views=(replace(seen.views[0], update=change(seen.views[0].update)),))
    found = inferred(seen)
    assert found.shape == labels.shape
    assert torch.equal(found, found.sort(1).values)
    return sum(torch.equal(one, other) for one, other in zip(found, labels.sort(1).values, strict=True)) / victims


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    ("model", "mode"),
    [(LeNet("idlg"), "eval"), (ConvNet(8, 2), "eval"), (ConvNet(8, 2, norm="batch"), "eval")],
    ids=["LeNet", "ConvNet", "batch norm"],
)
def test_counts_of_batches_are_exact(model, mode, classes):
    network = model.build((1, 12, 12), classes, 0)
    assert share_exact(network, Plan(batch_size=BATCH, mode=mode), classes) == 1


def test_counts_in_train_mode():
    network = ConvNet(8, 2, norm="batch").build((1, 12, 12), 3, 0)
    assert share_exact(network, Plan(batch_size=BATCH, mode="train"), 3) >= 0.5


@pytest.mark.parametrize("own", [0, 31, 32])
def test_enough_images_of_the_attacker_take_the_place_of_phantoms(own):
    """All images of the attacker are the same here, and so are predictions on them."""
    network = LeNet("idlg").build((1, 12, 12), 3, 0)
    images = smooth(BATCH).view(1, BATCH, 1, 12, 12)
    seen = scene(network, images, drawn(1, BATCH, 3, 0), Plan(batch_size=BATCH))
    seen = replace(seen, auxiliary=smooth(1).expand(own, -1, -1, -1) if own else None)
    clients = made_up(seen, _head(seen), seen.views[0].weights.parameters)
    assert clients is not None
    logits = clients.logits.flatten(0, 1)
    assert (own == 32) is torch.allclose(logits, logits[0].expand_as(logits))
    assert inferred(seen).shape == (1, BATCH)


def test_counts_of_several_local_steps_are_those_at_the_weights_between():
    network = LeNet("idlg").build((1, 12, 12), 3, 0)
    plan = Plan("FedAvg", batch_size=2, local_images=BATCH, learning_rate=0.001)
    assert share_exact(network, plan, 3) == 1


def test_counts_under_label_smoothing():
    network = LeNet("idlg").build((1, 12, 12), 3, 0)
    assert share_exact(network, Plan(batch_size=BATCH, label_smoothing=0.3), 3) == 1


def test_counts_without_a_bias():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(150, 3, bias=False))
    assert share_exact(network, Plan(batch_size=BATCH), 3) == 1


def test_counts_of_more_classes_than_are_compared_follow_from_the_bias():
    network = ConvNet(8, 2).build((1, 12, 12), 20, 0)
    assert share_exact(network, Plan(batch_size=BATCH), 20) == 1


def test_noise_on_the_update_is_weighed():
    """Without its estimate, this noise would be taken for what the images say."""
    network = LeNet("idlg").build((1, 12, 12), 3, 0)

    def noisy(update):
        generator = torch.Generator().manual_seed(1)
        return update.replace(
            {k: t + 0.01 * torch.randn(t.shape, generator=generator) for k, t in update.tensors.items()}
        )

    assert share_exact(network, Plan(batch_size=BATCH), 3, change=noisy) >= 0.8


def test_counts_sum_to_the_batch_for_any_update():
    network = LeNet("idlg").build((1, 12, 12), 4, 0)
    seen = scene(
        network, smooth(BATCH).view(1, BATCH, 1, 12, 12), drawn(1, BATCH, 4, 0), Plan(batch_size=BATCH), classes=4
    )
    for factor in (0.0, 1e-6, -1.0, 100.0, torch.inf):
        update = seen.views[0].update
        changed = update.replace({k: t * factor for k, t in update.tensors.items()})
        found = inferred(replace(seen, views=(replace(seen.views[0], update=changed),)))
        assert found.shape == (1, BATCH)
        assert 0 <= found.min() <= found.max() < 4


def test_a_model_that_changes_the_last_layer_s_outputs_has_no_made_up_clients():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(144, 3)

        def forward(self, images):
            return self.head(images.flatten(1)) / 4

    labels = drawn(1, BATCH, 3, 0)
    images = smooth(BATCH).view(1, BATCH, 1, 12, 12)
    for network, expected in ((Scaled(), True), (nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), False)):
        seen = scene(network, images, labels, Plan(batch_size=BATCH))
        weight = "head.weight" if expected else "1.weight"
        head = Head(weight, weight.replace("weight", "bias"))
        assert (made_up(seen, head, seen.views[0].weights.parameters) is None) is expected


def test_the_evidence_corrects_predictions_on_phantoms():
    """All images are brighter than phantoms, which moves the predictions."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    labels = drawn(5, 32, 3, 0)
    images = 0.6 + 0.3 * smooth(labels.numel()).view(*labels.shape, 1, 12, 12)
    seen = scene(network, images, labels, Plan(batch_size=32))
    clients = made_up(seen, Head("1.weight", "1.bias"), seen.views[0].weights.parameters)
    assert clients is not None
    tensors = {k: 32 * t.double() for k, t in seen.views[0].update.tensors.items()}
    wrong = {"phantoms": 0.0, "evidence": 0.0}
    for v, own in enumerate(labels):
        truth = own.bincount(minlength=3)
        chances = clients.logits.softmax(-1).mean((0, 1))
        first = counts_of(chances, tensors["1.bias"][v] / 32, 32, 0.0)
        found = best_counts(clients, Gradient(tensors["1.weight"][v], tensors["1.bias"][v], 32, 0.0))
        wrong["phantoms"] += float((first - truth).abs().sum())
        wrong["evidence"] += float((found - truth).abs().sum())
    assert wrong["evidence"] < wrong["phantoms"] / 2


def test_rounding_keeps_the_sum_and_the_shares():
    assert rounded(torch.tensor([1.0, 1.0, 2.0]), 8).tolist() == [2, 2, 4]
    assert rounded(torch.tensor([0.6, 0.3, 0.1]), 5).tolist() == [3, 2, 0]
    assert rounded(torch.tensor([0.0, 0.0]), 3).sum() == rounded(torch.tensor([torch.nan, 1.0]), 3).sum() == 3


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 8, 10), (1, 6, 8, 10), (3, 1, 1)])
def test_phantoms_are_images(shape):
    made = phantoms(shape, 4, 3, torch.Generator().manual_seed(0))
    assert made.shape == (4, 3, *shape)
    assert 0 <= made.min() <= made.max() <= 1
    again = phantoms(shape, 4, 3, torch.Generator().manual_seed(0))
    assert torch.equal(made, again)


def test_small_phantoms_are_drawn_once_and_no_attack_changes_those_of_the_next(monkeypatch):
    asked = []
    monkeypatch.setattr(clients, "phantoms", lambda *given: asked.append(given) or phantoms(*given))
    monkeypatch.setattr(clients, "_KEPT", 64 * 4 * 12**2)
    clients._drawn.cache_clear()
    for side, draws in ((12, 1), (13, 2)):
        seen = SimpleNamespace(auxiliary=None, image_shape=(1, side, side), gray=False)
        clients._images(seen, 64, 4).zero_()
        expected = phantoms((1, side, side), 64, 4, torch.Generator().manual_seed(0))
        assert torch.equal(clients._images(seen, 64, 4), expected)
        assert len(asked) == draws
        asked.clear()


def test_phantoms_are_gray_where_the_images_are_known_to_be():
    seen = SimpleNamespace(auxiliary=None, image_shape=(3, 12, 12), gray=True)
    made = clients._images(seen, 64, 4)
    expected = phantoms((1, 12, 12), 64, 4, torch.Generator().manual_seed(0))
    assert torch.equal(made, expected.expand(-1, -1, 3, -1, -1))


def test_phantoms_of_a_family_are_alike():
    made = phantoms((1, 16, 16), 12, 6, torch.Generator().manual_seed(0)).flatten(2)
    within = made.var(1).mean()
    assert within < 0.8 * made.flatten(0, 1).var(0).mean()


def test_counts_become_labels_in_order():
    assert classes_of(torch.tensor([2, 0, 1]), 3, 3).tolist() == [0, 0, 2]
    assert classes_of(torch.tensor([0.0, 3.0]), 3, 2).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1.0, 2.0], r"label counts of shape \(2,\): give one for each of the 3 classes"),
        ([[1.0, 1.0, 1.0]], r"of shape \(1, 3\)"),
        ([4.0, -1.0, 0.0], "the label count of class 1 is -1: give a whole number from 0 on"),
        ([1.5, 1.5, 0.0], "class 0 is 1.5"),
        ([0.0, 3.0, float("nan")], "class 2 is nan"),
        ([1.0, 1.0, 0.0], "the label counts sum to 2, but the update holds 3 images"),
    ],
)
def test_counts_that_cannot_be_those_of_a_batch(counts, message):
    with pytest.raises(InputError, match=message):
        classes_of(torch.tensor(counts), 3, 3)
