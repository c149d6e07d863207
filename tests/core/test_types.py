"""Small guarantees of the value types: stacking, norms, weights, rows."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Channel, Finding, Observation, Reconstruction, Update, View, Weights


def update(value: float, **options) -> Update:
    return Update({"w": torch.full((2, 3), value), "b": torch.full((2,), value)}, **options)


def test_stacking_updates():
    sent = [update(v, kind="difference", buffers={"m": torch.tensor([v])}, num_samples=4) for v in (1.0, 2.0, 3.0)]
    stacked = Update.stack(sent)
    assert (stacked.kind, stacked.num_samples) == ("difference", 4)
    assert {k: t.shape for k, t in stacked.tensors.items()} == {"w": (3, 2, 3), "b": (3, 2)}
    assert stacked.tensors["w"][:, 0, 0].tolist() == [1, 2, 3] == stacked.buffers["m"][:, 0].tolist()
    assert Update.stack([update(1.0)]).buffers is None


def test_norm_is_over_all_tensors_in_float64():
    big = Update({"w": torch.full((3,), 1e30), "b": torch.full((1,), 1e30)})
    assert big.norm().dtype == torch.float64
    assert float(big.norm()) == pytest.approx(2e30)
    assert float(update(0.5).norm()) == pytest.approx(math.sqrt(8 * 0.25))


def test_replace_keeps_the_rest():
    new = update(1.0, kind="difference", num_samples=7).replace({"w": torch.zeros(1)})
    assert (list(new.tensors), new.kind, new.num_samples) == (["w"], "difference", 7)


def test_stacking_channels():
    def halve(tensors):
        return {k: t / 2 for k, t in tensors.items()}

    channels = [Channel(halve, {"w": torch.full((2,), v)}, None) for v in (1.0, 2.0)]
    stacked = Channel.stack(channels)
    assert stacked.apply is halve
    assert stacked.precision["w"].tolist() == [[1, 1], [2, 2]]
    assert stacked.bounds is None
    assert Channel.stack([Channel(bounds={"w": torch.ones(2)})] * 3).bounds["w"].shape == (3, 2)
    tensors = {"w": torch.ones(1)}
    assert Channel().apply(tensors) is tensors


def test_weights_of_a_model():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    network.register_buffer("scale", torch.ones(1), persistent=False)
    network[0].bias.requires_grad_(False)
    weights = Weights.of(network)
    assert list(weights.parameters) == ["0.weight", "1.weight", "1.bias"]
    assert set(weights.buffers) == {
        "0.bias", "scale", "1.running_mean", "1.running_var", "1.num_batches_tracked"
    }  # fmt: skip
    assert not any(t.requires_grad for t in (*weights.parameters.values(), *weights.buffers.values()))


def test_values_are_frozen():
    batch = Batch(torch.zeros(3, 1, 2, 2), torch.zeros(3))
    assert len(batch) == 3
    for value in (batch, update(1.0), Channel(), Weights({})):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, None)


@pytest.mark.parametrize("told", [None, 6])
def test_observations_count_victims_and_images(told):
    plan = Plan("FedAvg", 2, 6)
    seen = Update.stack([update(1.0, num_samples=told)] * 5)
    observation = Observation(nn.Identity(), (View(Weights({}), (plan,), seen),), (1, 2, 2), 2)
    assert (len(observation), observation.num_images, observation.views[0].plan) == (5, 6, plan)


def test_under_secure_aggregation_images_of_all_clients_count():
    view = View(Weights({}), (Plan(batch_size=2), Plan(batch_size=3)), Update.stack([update(1.0)]))
    assert Observation(nn.Identity(), (view,), (1, 2, 2), 2).num_images == 5
    with pytest.raises(InputError, match=r"the sum of 2 clients.* or audit without secure aggregation"):
        view.plan  # noqa: B018


def test_rows_survive_json():
    made_up = {"str": "x", "int": 3, "float": 0.5, "bool": True}
    values = {f.name: made_up.get(str(f.type).partition(" ")[0]) for f in dataclasses.fields(Finding)} | {
        "grants": ("labels", "order"),
        "flags": (),
        "scores": {"ssim": 0.5, "nearest_ssim": None},
        "patient": None,
        "versions": {"torch": "2"},
    }
    row = Finding(**values)
    told = json.loads(json.dumps(row.to_dict()))
    assert Finding.from_dict(told) == row
    assert (told.pop("certificate"), told.pop("found_by"), told.pop("unread")) == ("x", "x", "x")
    older = dataclasses.replace(row, certificate="", found_by="", unread="")
    assert Finding.from_dict(told) == older, "a row of an older version"
    with pytest.raises(InputError, match=r"^certificate: "):
        Finding.from_dict({**told, "certificate": 3})


def test_a_reconstruction_holds_no_graph():
    """Else Python numbers made of it print torch's warning."""
    image = torch.full((1, 1, 1, 2, 2), 0.5, requires_grad=True)
    loss, none = torch.ones(1, requires_grad=True) * 2, torch.zeros(1, dtype=torch.long)
    made = Reconstruction(image, None, loss, none, none, ("stalled",), candidates=image[:, None])
    assert not any(one.requires_grad for one in (made.guesses, made.loss, made.candidates))
    assert image.requires_grad, "the attack keeps its own"
