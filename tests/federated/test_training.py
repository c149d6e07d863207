"""Training rounds against plain SGD and by hand, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.defenses import ClientDP, GaussianNoise, Mixup, NoDefense, SecAggPlus, TopK
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.federated.training import Server, Work, close_round, logits_of, play_client, start
from tests.federated.networks import batch, batch_normed, network, seeded


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def parts(*sizes: int) -> list[Batch]:
    """Return batches with different images."""
    whole = batch(sum(sizes))
    images, labels = whole.images.split(sizes), whole.labels.split(sizes)
    return [Batch(i, y) for i, y in zip(images, labels, strict=True)]


def played(model, batches, plan, rounds=1, defense=None, server=None, who=None):
    """Return the state after rounds with the same batches."""
    defense, server = defense or NoDefense(), server or Server(0.3)
    changed, standing = start(model, defense, len(batches), seed(0))
    ready = prepare(changed, plan)
    for number in range(rounds):
        work = [
            Work(c, b, Plan(**{**vars(plan), "batch_size": len(b)}), seed(10 * number + c))
            for c, b in enumerate(batches)
            if who is None or c in who[number]
        ]
        done = [play_client(ready, standing.weights, one, defense, standing.clients[one.client]) for one in work]
        standing = close_round(standing, done, defense, server, seed(100 + number)).after
    return standing


def distance(one, other) -> float:
    return max(float((one[k] - other[k]).abs().max()) for k in other)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_fedsgd_over_one_client_is_plain_sgd(momentum):
    model, (private,) = network("plain"), parts(5)
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(reference.parameters(), 0.3, momentum=momentum)
    for _ in range(4):
        optimizer.zero_grad()
        functional.cross_entropy(reference(private.images), private.labels).backward()
        optimizer.step()
    after = played(model, [private], Plan(), 4, server=Server(0.3, momentum))
    assert distance(after.weights.parameters, Weights.of(reference).parameters) < 1e-12
    assert bool(after.velocity) is (momentum > 0)


def test_fedsgd_over_clients_is_plain_sgd_on_all_their_images():
    model, several = network("plain"), parts(2, 5, 1)
    one = Batch(torch.cat([b.images for b in several]), torch.cat([b.labels for b in several]))
    spread, pooled = played(model, several, Plan(), 3), played(model, [one], Plan(), 3)
    assert distance(spread.weights.parameters, pooled.weights.parameters) < 1e-12


def test_fedavg_weights_clients_by_their_samples():
    model, (small, large) = network("plain"), parts(2, 6)
    plan, weights = Plan("FedAvg", learning_rate=0.5), Weights.of(model)
    own = [
        local_update(prepare(model, plan), b, Plan("FedAvg", len(b), learning_rate=0.5), weights)
        for b in (small, large)
    ]
    expected = {k: v + own[0].tensors[k] / 4 + 3 * own[1].tensors[k] / 4 for k, v in weights.parameters.items()}
    assert distance(played(model, [small, large], plan).weights.parameters, expected) < 1e-12
    unweighted = played(model, [small, large], Plan("FedAvg", learning_rate=0.5, sends=()))
    assert distance(unweighted.weights.parameters, expected) > 1e-4, "numbers that are not sent cannot weigh"


@pytest.mark.parametrize("sends", [("num_samples", "buffers"), ("num_samples",)])
def test_batch_norm_statistics_are_aggregated_if_they_are_sent(sends):
    model = seeded(batch_normed)
    before, after = Weights.of(model), played(model, parts(4, 4), Plan(sends=sends))
    moved = distance(after.weights.buffers, before.buffers)
    assert (moved > 1e-3) is ("buffers" in sends)
    if "buffers" in sends:
        one, other = (played(model, [b], Plan()).weights.buffers["1.running_mean"] for b in parts(4, 4))
        assert torch.allclose(after.weights.buffers["1.running_mean"], (one + other) / 2)


def test_each_client_owes_what_it_kept_back():
    model, two = network("plain"), parts(3, 3)
    defense = TopK(keep=0.1, feedback=True)
    after = played(model, two, Plan(), 2, defense, who=[(0, 1), (1,)])
    assert after.taken == (1, 2)
    first = played(model, two, Plan(), 1, defense)
    assert distance(after.clients[0]["owed"], first.clients[0]["owed"]) == 0, "it sat out"
    assert distance(after.clients[1]["owed"], first.clients[1]["owed"]) > 0
    assert distance(first.clients[0]["owed"], first.clients[1]["owed"]) > 0
    forgetful = played(model, two, Plan(), 2, TopK(keep=0.1), who=[(0, 1), (1,)])
    assert distance(forgetful.weights.parameters, after.weights.parameters) > 0


def test_secure_aggregation_is_the_weighted_mean_up_to_rounding():
    model, several = network("plain"), parts(2, 5, 1)
    plain = played(model, several, Plan(), 2)
    secure = played(model, several, Plan(), 2, SecAggPlus(max_weight=8.0))
    assert 0 < distance(secure.weights.parameters, plain.weights.parameters) < 1e-4


def test_clients_are_noised_by_their_own_generators():
    model, two = network("plain"), parts(3, 3)
    defense = ClientDP(clip=1.0, noise=1.0)
    one, again = (played(model, two, Plan(), 1, defense).weights.parameters for _ in range(2))
    assert distance(one, again) == 0
    assert distance(one, played(model, two, Plan(), 1).weights.parameters) > 1e-2


def test_the_model_moment_is_remembered():
    model, two = network("plain"), parts(3, 3)
    after = played(model, two, Plan(), 1, Mixup())
    assert [state["classes"] for state in (*after.clients, after.server)] == [3, 3, 3]


def test_what_diverges_is_said():
    with pytest.raises(InputError, match="not finite: training diverged; lower --learning-rate"):
        played(network("plain"), parts(3), Plan(), 1, GaussianNoise(scale=1e308))


def test_secure_aggregation_of_one_client_is_refused():
    with pytest.raises(InputError, match="needs two clients or more: there are 1"):
        played(network("plain"), parts(3, 3), Plan(), 1, SecAggPlus(), who=[(0,)])


def test_logits_are_those_of_eval_mode_in_any_chunks(monkeypatch):
    model, images = seeded(batch_normed), batch(7).images
    weights = played(model, parts(4), Plan()).weights
    reference = copy.deepcopy(model)
    reference.load_state_dict({**weights.parameters, **weights.buffers})
    expected = reference.eval()(images).detach()
    monkeypatch.setattr("medpfl.federated.training._CHUNK", 3)
    assert torch.allclose(logits_of(model, weights, images), expected)
    assert model.training, "it is left as it was"


def test_images_are_scored_in_chunks(monkeypatch):
    taken = []

    class OnDisk:
        def __len__(self):
            return 7

        def __getitem__(self, index):
            taken.append(len(range(*index.indices(7))))
            return images[index]

    model, images = seeded(batch_normed), batch(7).images
    weights = played(model, parts(4), Plan()).weights
    monkeypatch.setattr("medpfl.federated.training._CHUNK", 3)
    assert torch.equal(logits_of(model, weights, OnDisk()), logits_of(model, weights, images))
    assert taken == [3, 3, 1]


def test_a_model_that_writes_into_what_it_is_given_does_not_change_the_images():
    class InPlace(torch.nn.Module):
        def forward(self, x):
            return x.sub_(0.5).flatten(1)

    images = torch.rand(3, 1, 2, 2)
    before = images.clone()
    logits = [logits_of(InPlace(), Weights({}), images) for _ in range(2)]
    assert torch.equal(images, before)
    assert torch.equal(*logits)
