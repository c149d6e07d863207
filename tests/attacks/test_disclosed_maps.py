"""A public map is no defense: attacks that know it reconstruct the same as from the raw update.

Each test fails if the attack takes the update as it was sent.
"""

from __future__ import annotations

import pytest
import torch

from medpfl.attacks import CPL, DLG, RGAP, GradInv, Posterior, iDLG
from medpfl.attacks.matching.labels import LastLayer
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Batch, Weights
from medpfl.defenses import Clipping, NoDefense, SecAggPlus
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare
from medpfl.federated.server import observation, receive_sums
from medpfl.models import MLP, LeNet
from tests.attacks.mapped import Flipped, Last, Masked, Negated, NoBias, Permuted, Rotated, Scaled, Shifted
from tests.attacks.scenes import scene, smooth, tiny

TOLD = ThreatModel(("defense",))
EXACT = [Permuted(), Flipped(), Negated(), Permuted() | Flipped(), Flipped() | Permuted() | Permuted(seed=1)]
NEARLY = [Shifted(), Scaled(), Rotated(), Scaled() | Permuted() | Shifted()]
ATTACKS = [iDLG(steps=10), DLG(steps=10), CPL(steps=5), Posterior(steps=10), GradInv(steps=3), RGAP()]
ONE = torch.tensor([[2], [1], [0]])
BATCH = torch.tensor([[0, 2, 2], [1, 1, 0]])
PLANS = [
    Plan(batch_size=3),
    Plan(algorithm="FedAvg", batch_size=3, local_images=3, learning_rate=0.1),
    Plan(algorithm="FedAvg", batch_size=1, local_images=3, epochs=2, learning_rate=0.1),
]


def networks():
    return {
        "convolution": tiny(),
        "lenet": LeNet("idlg").build((1, 12, 12), 3, 0),
        "mlp": MLP((32,)).build((1, 12, 12), 3, 0),
    }


def seen_of(defense, labels=ONE, plan=None, network="convolution"):
    images = smooth(labels.numel()).view(*labels.shape, 1, 12, 12)
    return scene(networks()[network], images, labels, plan or Plan(), threat=TOLD, defense=defense)


def read(attack, seen):
    return attack(seen, torch.Generator().manual_seed(0))


def inferred(seen):
    return LastLayer().infer(seen, torch.rand(64, *seen.image_shape, generator=torch.Generator().manual_seed(1)))


def same_view(plain, seen):
    """Check that the views agree bit by bit, and so do the inferred labels."""
    (own,), (other,) = plain.views, seen.views
    assert other.channel is None
    assert own.channel is None
    assert all(torch.equal(t, other.update.tensors[k]) for k, t in own.update.tensors.items())
    assert torch.equal(inferred(seen), inferred(plain))


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_under_a_public_order_and_public_signs_an_attack_finds_the_very_same(attack):
    plain, found = (read(attack, seen_of(defense)) for defense in (None, Permuted() | Flipped()))
    assert torch.equal(found.guesses, plain.guesses)
    assert torch.equal(found.labels, plain.labels)
    assert torch.equal(found.loss, plain.loss)


@pytest.mark.parametrize("network", ["convolution", "lenet", "mlp"])
@pytest.mark.parametrize("defense", EXACT, ids=repr)
def test_under_a_public_order_and_public_signs_the_view_is_that_of_the_raw_update(defense, network):
    same_view(*(seen_of(one, network=network) for one in (None, defense)))


@pytest.mark.slow
@pytest.mark.parametrize("defense", NEARLY, ids=repr)
@pytest.mark.parametrize("attack", [iDLG(steps=40), RGAP()], ids=repr)
def test_under_other_public_maps_an_attack_finds_nearly_the_same(attack, defense):
    plain, found = read(attack, seen_of(None)), read(attack, seen_of(defense))
    assert torch.equal(found.labels, plain.labels)
    assert torch.equal(found.labels, ONE)
    assert (found.guesses - plain.guesses).square().mean() < 1e-4


@pytest.mark.parametrize("plan", PLANS, ids=["FedSGD", "FedAvg of a step", "FedAvg of many steps"])
@pytest.mark.parametrize("defense", EXACT, ids=repr)
def test_of_batches_and_local_steps_the_view_is_that_of_the_raw_update(defense, plan):
    same_view(*(seen_of(one, BATCH, plan) for one in (None, defense)))


@pytest.mark.parametrize("plan", PLANS[:2], ids=["FedSGD", "FedAvg"])
@pytest.mark.parametrize("defense", [*NEARLY, Last(), NoBias(), Masked()], ids=repr)
def test_labels_of_a_batch_are_inferred_as_of_the_raw_update(defense, plan):
    labels = torch.tensor([[2, 2, 2], [1, 1, 1]])
    found = inferred(seen_of(defense, labels, plan))
    assert torch.equal(found, inferred(seen_of(None, labels, plan)))
    assert torch.equal(found, labels)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [iDLG(steps=60), Posterior(steps=60)], ids=repr)
@pytest.mark.parametrize("defense", [Last(), NoBias(), Masked()], ids=repr)
def test_what_was_not_sent_is_not_read_as_zero(attack, defense):
    """Three maps: the last layer alone, everything except its bias, and a public half of all coordinates."""
    seen = seen_of(defense)
    found = read(attack, seen)
    images = smooth(3).view(3, 1, 1, 12, 12)
    assert torch.equal(found.labels, ONE)
    assert (found.guesses - images).square().mean() < 1e-3


def test_what_was_not_sent_is_told_apart_from_a_zero():
    (view,) = seen_of(NoBias()).views
    *_, last = view.update.tensors
    value, told = view.read(last)
    assert not value.any()
    assert not told.any()
    assert view.read("3.weight")[1].all()


def test_of_a_mask_of_the_bias_the_rows_of_the_weight_tell_the_labels_without_a_bias_they_do_too():
    for seed in range(5):
        seen = seen_of(Masked(seed=seed))
        assert torch.equal(inferred(seen), ONE)


@pytest.mark.parametrize("defense", [Flipped() | Clipping(0.01), Permuted() | Clipping(0.01)], ids=repr)
def test_a_map_before_clipping_hides_nothing(defense):
    plain, seen = seen_of(Clipping(0.01)), seen_of(defense)
    for name, t in plain.views[0].update.tensors.items():
        assert torch.allclose(seen.views[0].update.tensors[name], t, rtol=1e-5)
    assert torch.equal(inferred(seen), ONE)
    raw = {name: t[0] for name, t in seen_of(None).views[0].update.tensors.items()}
    for name, t in plain.views[0].channel(raw).items():
        assert torch.allclose(seen.views[0].channel(raw)[name], t, rtol=1e-5)


@pytest.mark.parametrize("defense", [Permuted(), Flipped()], ids=repr)
def test_of_a_sum_under_secure_aggregation_the_same_map_of_each_client_is_undone(defense):
    plan, network = Plan(), tiny()
    ready, weights = prepare(network, plan), Weights.of(network)
    sums = {}
    for one in (NoDefense(), defense):
        whole = one | SecAggPlus()
        made = [
            client_round(
                ready, weights, Batch(x[None], y[None]), plan, whole, whole.init(), torch.Generator().manual_seed(v)
            )
            for v, (x, y) in enumerate(zip(smooth(3), torch.tensor([2, 1, 2]), strict=True))
        ]
        mean, _ = whole.aggregate([r.sent for r in made], whole.init(), torch.Generator().manual_seed(0))
        (update,) = mean if isinstance(mean, list | tuple) else (mean,)
        received = receive_sums(weights, plan, [(update, made)], TOLD, image_shape=(1, 12, 12), num_classes=3)
        sums[one] = observation(ready, received, whole).views[0]
    plain, found = sums.values()
    assert found.channel.additive
    for name, t in plain.update.tensors.items():
        assert torch.allclose(
            found.update.tensors[name], t, atol=8 / plain.channel.precision[name].amax().sqrt().item()
        )
    assert all(torch.equal(p, found.channel.precision[k]) for k, p in plain.channel.precision.items())
