"""Soteria and PRECODE: their changes to model and gradients, which attackers can differentiate."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.defenses import PRECODE, Soteria
from medpfl.defenses.precode import Bottleneck
from medpfl.federated.client import client_round
from medpfl.federated.draws import Draws
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare

BOTH = [Soteria(0.25), PRECODE(6)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 20), nn.Tanh(), nn.Linear(20, 3)
    ).double()


def images(count=4):
    draw = torch.Generator().manual_seed(3)
    return Batch(torch.rand(count, 1, 8, 8, generator=draw, dtype=torch.float64), torch.arange(count) % 3)


def changed(defense, model=None):
    return defense.model(network() if model is None else model, defense.init(), torch.Generator().manual_seed(2))[0]


def play(defense, plan, seed=5):
    model, draw = changed(defense), torch.Generator().manual_seed(seed)
    played = client_round(
        prepare(model, plan), Weights.of(model), images(plan.images), plan, defense, defense.init(), draw
    )
    return model, played


@pytest.mark.parametrize("defense", BOTH, ids=repr)
def test_the_global_model_is_not_touched(defense):
    model = network()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    other = changed(defense, model)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert type(model[5]) is nn.Linear is not type(other[5])
    assert changed(defense, other) is other, "not twice"


@pytest.mark.parametrize("defense", BOTH, ids=repr)
def test_a_model_without_a_linear_layer(defense):
    with pytest.raises(InputError, match=f"{type(defense).__name__} needs a linear layer in the model"):
        changed(defense, nn.Conv2d(1, 2, 3))
    assert type(changed(defense, nn.Linear(4, 2))) is not nn.Linear, "a model that is one layer"


def representation(model, x):
    return model[:5](x)


def test_soteria_prunes_what_a_loop_over_coordinates_finds():
    _, played = play(Soteria(0.25), Plan(batch_size=4))
    ratios = torch.zeros(20, dtype=torch.float64)
    for i in range(20):
        x = images().images.requires_grad_()
        r = representation(network(), x)[:, i]
        slope = torch.autograd.grad(r.sum(), x)[0].flatten(1).norm(dim=1)
        ratios[i] = (r.abs() / slope).sum().detach()
    chosen = set(ratios.argsort(descending=True)[:5].tolist())
    assert set((played.draws.masks["5"][0] == 0).all(0).nonzero()[:, 0].tolist()) == chosen
    assert {i for i in range(20) if not played.sent.tensors["5.weight"][:, i].any()} == chosen


def test_soteria_changes_those_columns_and_nothing_else():
    plan = Plan(batch_size=4)
    model, played = play(Soteria(0.25), plan)
    assert torch.equal(model(images().images), network()(images().images))
    plain = local_update(prepare(network(), plan), images(), plan, Weights.of(network())).tensors
    kept = played.draws.masks["5"][0, 0] == 1
    for name, value in plain.items():
        sent = played.sent.tensors[name]
        assert torch.allclose(
            sent[:, kept] if name == "5.weight" else sent, value[:, kept] if name == "5.weight" else value
        )
    precision = Soteria(0.25).disclose(played.sent, plan).precision
    assert torch.equal(precision["5.weight"][0] > 0, kept)
    assert all((p > 0).all() for name, p in precision.items() if name != "5.weight")


def test_soteria_over_several_batches_says_nothing_of_the_layer():
    plan = Plan("FedAvg", 2, 4)
    _, played = play(Soteria(0.25), plan)
    assert played.draws.masks["5"].shape == (2, 2, 20)
    assert not torch.equal(*played.draws.masks["5"]), "each batch has its own"
    assert (Soteria(0.25).disclose(played.sent, plan).precision["5.weight"] == 0).all()


def test_precode_hangs_on_what_was_drawn():
    plan = Plan(batch_size=4)
    model, played = play(PRECODE(6), plan)
    mask = played.draws.masks["5.0"]
    assert mask.shape == (1, 4, 6)
    bottleneck = model[5][0]
    mean, log_variance = bottleneck.precode_encoder(representation(model, images().images)).chunk(2, 1)
    code = mean + (log_variance / 2).exp() * mask[0]
    loss = nn.functional.cross_entropy(model[5][1](bottleneck.precode_decoder(code)), images().labels)
    slow = torch.autograd.grad(loss, list(model.parameters()))
    for sent, value in zip(played.sent.tensors.values(), slow, strict=True):
        assert torch.allclose(sent, value)
    assert torch.allclose(model(images().images), model[5][1](bottleneck.precode_decoder(mean))), "eps 0 if not given"
    other = play(PRECODE(6), plan, seed=6)[1]
    assert not torch.allclose(other.sent.tensors["0.weight"], played.sent.tensors["0.weight"])


def test_precode_draws_anew_in_every_step_and_its_numbers_are_normal():
    plan = Plan("FedAvg", 2, 4, epochs=2)
    mask = play(PRECODE(50), plan)[1].draws.masks["5.0"]
    assert mask.shape == (4, 2, 50)
    assert len(mask.unique()) == 400
    assert (mask.mean().item(), mask.std().item()) == pytest.approx((0, 1), abs=0.15)


def test_precode_is_exact_before_the_bottleneck_only():
    plan = Plan(batch_size=4)
    precision = PRECODE(6).disclose(play(PRECODE(6), plan)[1].sent, plan).precision
    zero = {name for name, p in precision.items() if not p.any()}
    assert zero == {f"5.0.precode_{c}.{w}" for c in ("encoder", "decoder") for w in ("weight", "bias")} | {
        "5.1.weight", "5.1.bias",
    }  # fmt: skip
    assert all((p > 0).all() for name, p in precision.items() if name not in zero)


def test_weights_of_the_bottleneck_are_drawn_from_the_generator():
    one, again = (Bottleneck(9, 4, torch.Generator().manual_seed(s)).state_dict() for s in (1, 1))
    assert all(torch.equal(t, again[k]) for k, t in one.items())
    weight = one["precode_encoder.weight"]
    assert (weight.abs() <= 1 / 3).all()
    assert weight.abs().max() > 0.3


@pytest.mark.parametrize("defense", BOTH, ids=repr)
@pytest.mark.parametrize("granted", [True, False])
def test_an_attacker_differentiates_it_over_many_victims(defense, granted):
    plan = Plan(batch_size=2)
    model, played = play(defense, plan)
    ready, weights, labels = prepare(model, plan), Weights.of(model), images(2).labels
    masks = played.draws.masks if granted else {}

    def distance(guess):
        fake = local_update(ready, Batch(guess, labels), plan, weights, Draws(None, masks)).tensors
        return sum((fake[k] - t).square().sum() for k, t in played.sent.tensors.items())

    guesses = torch.rand(3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slopes = vmap(grad(distance))(guesses)
    step = 1e-6 * slopes[1]
    change = distance(guesses[1] + step) - distance(guesses[1] - step)
    assert (change / 2e-6).item() == pytest.approx(slopes[1].square().sum().item(), rel=1e-4)
    assert (distance(images(2).images).item() < 1e-20) == granted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda v=v: Soteria(v), f"prune is {v}") for v in (0, 1, -0.1, 1.5)),
        *((lambda v=v: PRECODE(v), f"width is {v}") for v in (0, -1, 2.5, True)),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
