"""Every member of ``defenses.__all__`` keeps what the role promises. One row a defense."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from medpfl import defenses
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.spec import build, registry
from medpfl.core.types import Batch, Weights
from medpfl.defenses import GaussianNoise, LaplaceNoise, NoDefense
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare

ROWS = {
    "GaussianNoise": [GaussianNoise(0.1), GaussianNoise(0.5, "norm"), GaussianNoise(0.5, "layer")],
    "LaplaceNoise": [LaplaceNoise(0.1), LaplaceNoise(0.5, "norm"), LaplaceNoise(0.5, "layer")],
    "NoDefense": [NoDefense()],
}
DEFENSES = [defense for row in ROWS.values() for defense in row]
PLANS = {
    "FedSGD": Plan(batch_size=4, mode="eval"),
    "FedAvg": Plan("FedAvg", 2, 4, epochs=2, mode="eval"),
}

each = pytest.mark.parametrize("defense", DEFENSES, ids=repr)
both = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(108, 2)).to(dtype)


def play(defense, plan, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    model, state = defense.model(network(dtype), defense.init(), generator)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    private = Batch(images, torch.tensor([0, 1, 1, 0]))
    return client_round(prepare(model, plan), Weights.of(model), private, plan, defense, state, generator)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_every_defense_has_a_row():
    assert sorted(ROWS) == sorted(defenses.__all__)
    assert all(type(defense).__name__ == name for name, row in ROWS.items() for defense in row)


@each
@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_names_shapes_and_dtypes_stay(defense, plan, dtype):
    played = play(defense, plan, dtype=dtype)
    assert list(played.sent.tensors) == list(played.raw.tensors)
    for name, sent in played.sent.tensors.items():
        raw = played.raw.tensors[name]
        assert (sent.shape, sent.dtype, sent.device) == (raw.shape, dtype, raw.device)
        assert sent.isfinite().all()


@each
@both
def test_what_else_is_sent_stays(defense, plan):
    played = play(defense, plan)
    assert (played.sent.kind, played.sent.num_samples) == (played.raw.kind, 4)
    assert same(played.sent.buffers, played.raw.buffers)


@each
@both
def test_the_generator_is_the_only_source(defense, plan):
    raw = play(NoDefense(), plan).raw
    before = torch.random.get_rng_state()
    one, again, other = (
        defense.update(raw, defense.init(), torch.Generator().manual_seed(seed))[0].tensors for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(one, again)
    assert same(play(defense, plan, 3).sent.tensors, play(defense, plan, 3).sent.tensors)
    if defense != NoDefense():
        assert not any(torch.equal(one[k], other[k]) for k in one)
        assert not any(torch.equal(one[k], raw.tensors[k]) for k in one)


@each
@both
def test_what_is_handed_over_is_not_changed(defense, plan):
    raw = play(defense, plan).raw
    kept, state = copy.deepcopy(raw), defense.init()
    was = copy.deepcopy(state)
    defense.update(raw, state, torch.Generator().manual_seed(0))
    defense.disclose(raw)
    assert same(kept.tensors, raw.tensors)
    assert same(kept.buffers, raw.buffers)
    assert state == was


@each
@both
@pytest.mark.parametrize("first", [True, False])
def test_composed_with_nothing_it_is_itself(defense, plan, first):
    composed = NoDefense() | defense if first else defense | NoDefense()
    played, alone = play(composed, plan, 3), play(defense, plan, 3)
    assert same(played.sent.tensors, alone.sent.tensors)
    assert composed.where == defense.where or defense.where == "server"
    channel, own = composed.disclose(alone.sent), defense.disclose(alone.sent)
    assert same(channel.apply(alone.raw.tensors), own.apply(alone.raw.tensors))
    for one, other in ((channel.precision, own.precision), (channel.bounds, own.bounds)):
        assert (one is None and other is None) or same(one, other)


@each
@both
def test_what_is_disclosed_fits_the_update(defense, plan):
    sent = play(defense, plan).sent
    channel = defense.disclose(sent)
    for told in (channel.precision, channel.bounds):
        if told is not None:
            assert {k: t.shape for k, t in told.items()} == {k: t.shape for k, t in sent.tensors.items()}
            assert all(t.isfinite().all() and (t >= 0).all() for t in told.values())


@each
def test_spec_both_ways(defense):
    assert build(repr(defense), registry(defenses), "defense") == defense
    assert isinstance(defense, Defense)


@each
@both
def test_an_update_of_zeros_and_a_bare_one_are_survived(defense, plan):
    raw = play(NoDefense(), plan).raw
    for update in (
        raw.replace({k: torch.zeros_like(t) for k, t in raw.tensors.items()}),
        replace(raw, buffers=None, num_samples=None),
    ):
        sent, _ = defense.update(update, defense.init(), torch.Generator().manual_seed(0))
        assert all(t.isfinite().all() for t in sent.tensors.values())
        told = defense.disclose(sent).precision
        assert told is None or all(t.isfinite().all() for t in told.values())
