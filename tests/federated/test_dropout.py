"""Dropout by masks that the client draws: the same draws give the same update, at the right rate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.federated.draws import Draws, Dropout, draw
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from tests.federated.networks import batch, dropping, gap, minus, seeded, trained

FEDAVG = Plan("FedAvg", 2, 6, epochs=2, learning_rate=0.3)


def seed(value=0):
    return torch.Generator().manual_seed(value)


def test_draws_are_of_their_steps_and_layers():
    ready = prepare(seeded(dropping), FEDAVG)
    draws = draw(ready, batch(6), FEDAVG, seed())
    assert {name: mask.shape for name, mask in draws.masks.items()} == {"1": (6, 2, 6, 1, 1), "5": (6, 2, 40)}
    assert draws.order.shape == (2, 6)
    assert draws.order.sort(1).values.tolist() == [list(range(6))] * 2
    assert set(draws.at(3)) == {"1.medpfl_mask", "5.medpfl_mask"}
    assert torch.equal(draws.at(3)["5.medpfl_mask"], draws.masks["5"][3])
    steps = [tuple(m.flatten().tolist()) for m in draws.masks["5"]]
    assert len(set(steps)) == 6


@pytest.mark.parametrize("plan", [Plan(batch_size=6), Plan("FedAvg", 6, epochs=3)])
def test_one_batch_has_no_order(plan):
    assert draw(prepare(seeded(dropping), plan), batch(6), plan, seed()).order is None


def test_the_generator_is_the_only_source():
    ready = prepare(seeded(dropping), FEDAVG)
    before = torch.random.get_rng_state()
    one, same, other = (draw(ready, batch(6), FEDAVG, seed(s)) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.order, same.order)
    assert all(torch.equal(one.masks[k], same.masks[k]) for k in one.masks)
    assert not torch.equal(one.masks["5"], other.masks["5"])


def test_the_same_draws_give_the_same_update():
    model, private = seeded(dropping), batch(6)
    ready, weights = prepare(model, FEDAVG), Weights.of(model)
    one, other = draw(ready, private, FEDAVG, seed(1)), draw(ready, private, FEDAVG, seed(2))
    first = dict(local_update(ready, private, FEDAVG, weights, one).tensors)
    assert gap(first, dict(local_update(ready, private, FEDAVG, weights, one).tensors)) == 0
    assert gap(first, dict(local_update(ready, private, FEDAVG, weights, other).tensors)) > 1e-3
    unmasked = Draws(one.order)
    assert gap(first, dict(local_update(ready, private, FEDAVG, weights, unmasked).tensors)) > 1e-3


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_rates_scales_and_whole_channels(layer, rate):
    shape = {nn.Dropout1d: (400, 5, 6), nn.Dropout3d: (400, 5, 3, 2, 1)}.get(layer, (400, 5, 3, 2))
    ones = torch.ones(shape)
    dropout = Dropout(layer(rate))
    mask = dropout.draw(ones, seed())
    real = layer(rate).train()(ones)
    assert mask.unique().tolist() == pytest.approx(real.unique().tolist())
    assert mask.shape == (shape if layer is nn.Dropout else (400, 5, *[1] * (len(shape) - 2)))
    dropped = float((mask == 0).double().mean())
    assert abs(dropped - rate) < 5 * (max(rate * (1 - rate), 1e-9) / mask.numel()) ** 0.5
    if layer is not nn.Dropout:
        kept = real.flatten(2)
        assert torch.equal(kept.amin(2), kept.amax(2))  # torch too drops whole channels


@pytest.mark.parametrize("plan", [Plan(batch_size=6), FEDAVG], ids=["FedSGD", "FedAvg"])
def test_masked_steps_are_those_of_a_real_network_whose_dropout_drops_the_same(plan):
    model, private = seeded(dropping), batch(6)
    ready = prepare(model, plan)
    draws = draw(ready, private, plan, seed())
    real = copy.deepcopy(model)
    for name in ("1", "5"):
        masks = iter(draws.masks[name])
        real.get_submodule(name).register_forward_hook(lambda _, inputs, __, masks=masks: inputs[0] * next(masks))
    if plan.algorithm == "FedSGD":
        loss = functional.cross_entropy(real(private.images), private.labels)
        gradient = torch.autograd.grad(loss, list(real.parameters()))
        expected = dict(zip(dict(real.named_parameters()), gradient, strict=True))
    else:
        expected = minus(trained(real, private, plan, draws), model)
    assert gap(dict(local_update(ready, private, plan, Weights.of(model), draws).tensors), expected) < 1e-13


def test_no_masks_in_eval_mode():
    plan = Plan(batch_size=4, mode="eval")
    model = seeded(dropping)
    ready = prepare(model, plan)
    assert isinstance(ready[5], nn.Dropout)
    assert not ready.training
    assert draw(ready, batch(4), plan, seed()).masks == {}


def test_preparing_copies():
    model = seeded(dropping).eval()
    ready = prepare(model, Plan())
    assert isinstance(ready[1], Dropout)
    assert isinstance(model[1], nn.Dropout2d)
    assert not model.training
    assert not {p.data_ptr() for p in ready.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert isinstance(prepare(nn.Dropout(0.2), Plan(mode="eval")), nn.Dropout)


def test_hooks_are_gone_after_a_draw():
    ready = prepare(seeded(dropping), Plan(batch_size=4))
    draw(ready, batch(4), Plan(batch_size=4), seed())
    with pytest.raises(RuntimeError):
        draw(ready, batch(4, 9), Plan(batch_size=4), seed())
    assert not any(m._forward_pre_hooks for m in ready.modules())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.idle = nn.Dropout(), nn.Dropout()
        self.enter, self.out = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x):
        return self.out(self.drop(torch.tanh(self.enter(self.drop(x.flatten(1))))))


def test_a_dropout_layer_used_twice_is_refused():
    model = seeded(Twice)
    ready = prepare(model, Plan(batch_size=2))
    with pytest.raises(InputError, match="'drop' is used more than once: give each use a layer of its own"):
        draw(ready, batch(2), Plan(batch_size=2), seed())


@pytest.mark.parametrize("layer", [nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_alpha_dropout_is_refused_in_train_mode(layer):
    model = nn.Sequential(nn.Flatten(), layer(0.5))
    with pytest.raises(InputError, match="layer '1': alpha dropout"):
        prepare(model, Plan())
    prepare(model, Plan(mode="eval"))


def test_poisson_batches_take_the_masks_of_their_images():
    """A step with the drawn images alone, each with its own mask, divided by the expected number."""
    plan = Plan("FedAvg", 2, 6, learning_rate=1.0, sampling="poisson")
    model, private = seeded(dropping), batch(6)
    draws = draw(prepare(model, plan), private, plan, torch.Generator().manual_seed(1))
    assert draws.order is None
    assert (draws.chosen.shape, draws.masks["5"].shape) == ((3, 6), (3, 6, 40))
    alone = Plan("FedSGD", 2, 6, sampling="poisson")
    sent = local_update(prepare(model, plan), private, alone, Weights.of(model), draws).tensors
    index = draws.chosen[0].nonzero()[:, 0]
    part = Batch(private.images[index], private.labels[index])
    masks = {name: mask[:1, index] for name, mask in draws.masks.items()}
    mean = local_update(prepare(model, plan), part, Plan(batch_size=len(index)), Weights.of(model), Draws(None, masks))
    for name, value in mean.tensors.items():
        assert torch.allclose(sent[name], value * len(index) / 2)
