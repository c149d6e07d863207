"""DP-SGD in parts gives the same update as all per-sample gradients at once, with few in memory."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.types import Batch, Weights
from medpfl.defenses import DPSGD, GaussianNoise
from medpfl.federated import local
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare

PLANS = [Plan(batch_size=7), Plan("FedAvg", 4, 8, epochs=2), Plan("FedAvg", 3, 9, epochs=2, sampling="poisson")]


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Dropout(0.4), nn.Flatten(), nn.Linear(108, 3)
    return nn.Sequential(*layers).double()


def play(defense, plan, seed=5):
    draw = torch.Generator().manual_seed(3)
    batch = Batch(torch.rand(plan.images, 1, 8, 8, generator=draw, dtype=torch.float64), torch.arange(plan.images) % 3)
    model, generator = network(), torch.Generator().manual_seed(seed)
    return client_round(prepare(model, plan), Weights.of(model), batch, plan, defense, defense.init(), generator)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.algorithm}-{plan.sampling}")
@pytest.mark.parametrize("defense", [DPSGD(0.3, 0.5), DPSGD(0.3, 0.5) | GaussianNoise(0.1)], ids=["alone", "composed"])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_parts_of_any_size_give_the_same_update(plan, defense, most, monkeypatch):
    whole = play(defense, plan)
    monkeypatch.setattr(local, "_MOST_IMAGES", most)
    parts = play(defense, plan)
    assert parts.state == whole.state
    for name, tensor in whole.sent.tensors.items():
        assert torch.allclose(parts.sent.tensors[name], tensor, rtol=1e-10, atol=1e-12)
        assert not torch.equal(tensor, torch.zeros_like(tensor))


def test_the_sum_of_parts_is_that_of_the_moment_on_all():
    defense, rows = DPSGD(0.3, 0.5), {"w": torch.randn(5, 2, 3, dtype=torch.float64), "b": torch.randn(5, 4).double()}
    moved, after = defense.gradient(rows, defense.init(), torch.Generator().manual_seed(1))
    parts = iter([{k: t[:2] for k, t in rows.items()}, {k: t[2:] for k, t in rows.items()}])
    made = defense.summed(parts, defense.init(), torch.Generator().manual_seed(1))
    assert made is not None
    assert made[1] == after == {"steps": 1}
    for name, total in made[0].items():
        assert torch.allclose(total, moved[name].sum(0))


def test_a_part_holds_no_more_numbers_than_its_limit_whatever_the_batch(monkeypatch):
    sizes = []
    plain = DPSGD.summed

    def watched(self, parts, state, generator):
        seen = list(parts)
        sizes.extend(len(part["0.weight"]) for part in seen)
        return plain(self, iter(seen), state, generator)

    monkeypatch.setattr(DPSGD, "summed", watched)
    monkeypatch.setattr(local, "_MOST_NUMBERS", 3 * sum(p.numel() for p in network().parameters()))
    play(DPSGD(), Plan(batch_size=8))
    assert sizes == [3, 3, 2]


@dataclass(frozen=True, repr=False)
class Largest(Defense):
    """A defense that keeps, for each coordinate, the largest value among all images."""

    def gradient(self, value, state, generator):
        return {name: t * (t == t.amax(0)) for name, t in value.items()}, state


def test_a_defense_that_must_see_all_images_still_does(monkeypatch):
    monkeypatch.setattr(local, "_MOST_IMAGES", 2)
    mixed = DPSGD(0.3, 0.5) | Largest()
    assert mixed.summed(iter([]), mixed.init(), torch.Generator()) is None
    parts = play(mixed, PLANS[0])
    monkeypatch.undo()
    for name, tensor in play(mixed, PLANS[0]).sent.tensors.items():
        assert torch.allclose(parts.sent.tensors[name], tensor, rtol=1e-10, atol=1e-12)
