"""The layer that produces the logits, and the labels that its gradient reveals."""

import pytest
import torch
from torch import nn

from medpfl.attacks import DLG, GradInv, iDLG
from medpfl.attacks.matching.labels import LastLayer, last_layer
from medpfl.core.plan import Plan
from tests.attacks.scenes import scene, smooth

LABELS = torch.tensor([[0], [1], [2], [1], [0], [2]])


class HeadFirst(nn.Module):
    """A network that declares its last layer before a convolution with as many channels as classes."""

    def __init__(self, bias=True):
        super().__init__()
        self.head = nn.Linear(3 * 100, 3, bias=bias)
        self.body = nn.Conv2d(1, 3, 3)

    def forward(self, images):
        return self.head(self.body(images).sigmoid().flatten(1))


class Scaled(HeadFirst):
    """A network with a temperature."""

    def forward(self, images):
        return super().forward(images) / 4


class Squashed(HeadFirst):
    """A network with a function after the last layer that changes every row."""

    def forward(self, images):
        return super().forward(images).tanh()


def built(network, seed=0):
    torch.manual_seed(seed)
    return network()


def seen_of(network, labels=LABELS, plan=None):
    plan = plan or Plan(batch_size=labels.shape[1])
    return scene(network, smooth(labels.numel()).view(*labels.shape, 1, 12, 12), labels, plan)


def inferred(seen, seed=1):
    dummy = torch.randn(64, *seen.image_shape, generator=torch.Generator().manual_seed(seed))
    return LastLayer().infer(seen, dummy)


@pytest.mark.parametrize("kind", [HeadFirst, Scaled])
def test_the_last_layer_is_the_one_that_gives_the_logits_not_the_last_that_is_declared(kind):
    seen = seen_of(built(kind))
    assert last_layer(seen) == ("head.weight", "head.bias")
    assert torch.equal(inferred(seen), LABELS)
    assert last_layer(seen_of(built(lambda: kind(bias=False)))) == ("head.weight", None)


def test_the_last_layer_of_several_steps_and_of_batches_is_the_same():
    plan = Plan(algorithm="FedAvg", batch_size=1, local_images=2, epochs=2)
    assert last_layer(seen_of(built(HeadFirst), LABELS.view(3, 2), plan)) == ("head.weight", "head.bias")


def test_where_no_layer_gives_the_logits_the_last_one_that_is_declared_stands_in():
    assert last_layer(seen_of(built(Squashed))) == ("body.weight", "body.bias")


@pytest.mark.parametrize("squash", [nn.Tanh, nn.Sigmoid, lambda: nn.LayerNorm(54)], ids=["tanh", "sigmoid", "norm"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_labels_without_a_bias_whatever_the_sign_of_its_inputs(squash, classes):
    right = 0
    for seed in range(10):
        network = built(
            lambda: nn.Sequential(nn.Conv2d(1, 6, 3, 4), nn.Flatten(), squash(), nn.Linear(54, classes, bias=False)),
            seed,
        )
        labels = torch.arange(6)[:, None] % classes
        images = smooth(6, seed=seed)[:, None]
        found = inferred(scene(network, images, labels, Plan(), classes=classes), seed)
        right += int((found == labels).sum())
    assert right >= (60 if classes > 2 else 57)  # of two, only the inputs' sign tells them apart, which is a guess


@pytest.mark.slow
@pytest.mark.parametrize("attack", [iDLG(steps=1), DLG(steps=1), GradInv(steps=1)], ids=repr)
def test_what_is_inferred_of_a_batch_is_the_same_whatever_the_other_victims_are(attack):
    for seed in range(3):
        labels = torch.randint(3, (8, 4), generator=torch.Generator().manual_seed(seed))
        network = built(HeadFirst, seed)
        whole, alone = (attack(seen_of(network, own), torch.Generator().manual_seed(0)) for own in (labels, labels[:1]))
        assert torch.equal(whole.labels[:1], alone.labels)
        assert torch.allclose(whole.guesses[:1], alone.guesses, atol=1e-3)


def test_labels_of_a_batch_whose_update_was_scaled_are_as_many_as_its_images():
    labels = torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2]])
    seen = seen_of(built(HeadFirst), labels)
    for tensor in seen.views[0].update.tensors.values():
        tensor.mul_(10)
    assert torch.equal(inferred(seen), labels)
