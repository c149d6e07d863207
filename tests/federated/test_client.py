"""A client's round: its checks, its output, and that a seed repeats it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.types import Batch, Weights
from medpfl.defenses import LaplaceNoise, NoDefense
from medpfl.federated.client import client_round
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from tests.federated.networks import batch, batch_normed, dropping, gap, minus, network, seeded, trained

FEDAVG = Plan("FedAvg", 2, 6, epochs=2, learning_rate=0.3)


def play(model, private, plan, defense=None, seed=0):
    defense = defense or NoDefense()
    generator = torch.Generator().manual_seed(seed)
    return client_round(prepare(model, plan), Weights.of(model), private, plan, defense, defense.init(), generator)


@pytest.mark.parametrize("value", [-1e-6, 1 + 1e-6, float("nan"), float("inf"), 255.0])
def test_images_out_of_range(value):
    private = batch(4)
    private.images[2, 0, 3, 3] = value
    with pytest.raises(InputError, match=r"images must lie in \[0, 1\]"):
        play(network("plain"), private, Plan(batch_size=4))


@pytest.mark.parametrize("count", [1, 5, 7])
def test_another_number_of_images_than_planned(count):
    with pytest.raises(InputError, match=f"the plan is for 6 images, the batch holds {count}"):
        play(network("plain"), batch(count), FEDAVG)


def test_the_ends_of_the_range_are_in_it():
    images = torch.zeros(2, 1, 8, 8).double()
    images[1] = 1
    assert play(network("plain"), Batch(images, torch.tensor([0, 1])), Plan(batch_size=2)).sent.norm() > 0


def test_an_undefended_round_is_a_local_update_on_its_draws():
    model, private = seeded(dropping), batch(6)
    played = play(model, private, FEDAVG)
    assert played.sent is played.raw
    again = local_update(prepare(model, FEDAVG), private, FEDAVG, Weights.of(model), played.draws)
    assert gap(dict(played.sent.tensors), dict(again.tensors)) == 0
    assert played.batch is private
    assert played.state == {}


def test_it_shuffles():
    model, private = network("plain"), batch(6)
    played = play(model, private, FEDAVG)
    assert played.draws.order.shape == (2, 6)
    after = trained(model, private, FEDAVG, played.draws)
    assert gap(dict(played.sent.tensors), minus(after, model)) < 1e-13
    assert not torch.equal(played.draws.order, play(model, private, FEDAVG, seed=1).draws.order)


@pytest.mark.parametrize("defense", [NoDefense(), LaplaceNoise(0.1)], ids=repr)
def test_a_seed_repeats_it(defense):
    model, private = seeded(dropping), batch(6)
    one, same, other = (dict(play(model, private, FEDAVG, defense, s).sent.tensors) for s in (1, 1, 2))
    assert gap(one, same) == 0
    assert gap(one, other) > 1e-3


@pytest.mark.parametrize("sends", [(), ("num_samples",), ("buffers",), ("num_samples", "buffers")])
def test_only_what_the_plan_sends_is_sent(sends):
    model = seeded(batch_normed)
    played = play(model, batch(6), replace(FEDAVG, sends=sends))
    for update in (played.raw, played.sent):
        assert update.num_samples == (6 if "num_samples" in sends else None)
        assert (update.buffers is not None) == ("buffers" in sends)
        assert not any(t.requires_grad for t in update.tensors.values())
    if "buffers" in sends:
        assert not torch.equal(played.sent.buffers["1.running_mean"], model[1].running_mean)


@dataclass(frozen=True, repr=False)
class Sampled(Defense):
    """A defense that multiplies every per-sample gradient by ten, and counts the steps."""

    def init(self):
        return {"steps": 0}

    def gradient(self, value, state, generator):
        assert {len(t) for t in value.values()} == {2}
        return {k: 10 * t for k, t in value.items()}, {"steps": state["steps"] + 1}


def test_per_sample_gradients_only_for_those_who_want_them():
    """Batch norm in train mode has none: an undefended round works, a per-sample one is refused."""
    plain, private = network("group norm"), batch(6)
    played = play(plain, private, FEDAVG, Sampled())
    assert played.state == {"steps": 6}
    faster = play(plain, private, replace(FEDAVG, learning_rate=3.0))
    assert gap(dict(played.sent.tensors), dict(faster.sent.tensors)) < 1e-12
    with pytest.raises(InputError, match="batch norm in train mode"):
        play(seeded(batch_normed), private, FEDAVG, Sampled())
    play(seeded(batch_normed), private, FEDAVG)


def test_given_draws_are_used_and_only_the_defense_draws_anew():
    model, private = seeded(dropping), batch(6)
    first = play(model, private, FEDAVG, seed=1)
    ready, weights = prepare(model, FEDAVG), Weights.of(model)

    def again(defense, seed):
        generator = torch.Generator().manual_seed(seed)
        return client_round(ready, weights, private, FEDAVG, defense, {}, generator, first.draws)

    one, other = again(NoDefense(), 2), again(LaplaceNoise(0.1), 3)
    assert one.draws is first.draws
    assert gap(dict(one.raw.tensors), dict(first.raw.tensors)) == 0
    assert gap(dict(other.raw.tensors), dict(first.raw.tensors)) == 0
    assert gap(dict(other.sent.tensors), dict(first.sent.tensors)) > 0
