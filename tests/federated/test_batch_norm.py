"""Batch-norm statistics after a round equal the real module's after the same batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Weights
from medpfl.federated.draws import Draws
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from tests.federated.networks import batch, batch_normed, gap, network, seeded, size_of, trained

FEDAVG = Plan("FedAvg", 2, 6, epochs=2, learning_rate=0.3, momentum=0.9)
ORDER = Draws(torch.tensor([[3, 1, 5, 0, 2, 4], [0, 5, 4, 2, 3, 1]]))


def buffers_after(model, private, plan, draws=None):
    sent = local_update(prepare(model, plan), private, plan, Weights.of(model), draws, buffers=True)
    return dict(sent.buffers)


def used(model):
    """Return the network with statistics unlike a new network's."""
    model = model.train()
    for seed in range(3):
        model(batch(4, size_of("ResNet-18") if hasattr(model, "conv1") else 8, seed + 10).images)
    return model


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, None])
@pytest.mark.parametrize(("plan", "draws"), [(Plan(batch_size=6), Draws()), (FEDAVG, ORDER)], ids=["FedSGD", "FedAvg"])
def test_as_the_real_module_s(plan, draws, momentum):
    model, private = used(seeded(lambda: batch_normed(momentum))), batch(6)
    after = buffers_after(model, private, plan, draws)
    real = Weights.of(trained(model, private, plan, draws)).buffers
    assert after["1.num_batches_tracked"] == 3 + plan.steps
    assert gap(after, dict(real)) < 1e-12
    assert gap(after, dict(Weights.of(model).buffers)) > 1e-3


@pytest.mark.slow
def test_as_a_real_resnet_s():
    model, private = used(network("ResNet-18")), batch(4, 32)
    after = buffers_after(model, private, Plan(batch_size=4))
    real = Weights.of(trained(model, private, Plan(batch_size=4), Draws())).buffers
    assert {"mean", "deviation", "bn1.running_var", "layer4.1.bn2.running_mean"} <= set(after)
    assert gap(after, dict(real)) < 1e-12


def test_in_single_precision():
    model, private = used(seeded(batch_normed)).float(), batch(6)
    private = type(private)(private.images.float(), private.labels)
    real = Weights.of(trained(model, private, FEDAVG, ORDER)).buffers
    assert gap(buffers_after(model, private, FEDAVG, ORDER), dict(real)) < 1e-5


@pytest.mark.parametrize("plan", [Plan(batch_size=6, mode="eval"), Plan("FedAvg", 2, 6, mode="eval")])
def test_unchanged_in_eval_mode(plan):
    model = used(seeded(batch_normed))
    assert gap(buffers_after(model, batch(6), plan), dict(Weights.of(model).buffers)) == 0


def test_what_is_no_statistic_is_passed_on():
    model = seeded(batch_normed)
    model[0].bias.requires_grad_(False)
    model[5] = nn.BatchNorm1d(5, track_running_stats=False).double()
    model.register_buffer("scale", torch.tensor(3.0))
    after = buffers_after(model, batch(4), Plan(batch_size=4))
    assert set(after) == {
        "scale", "0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"
    }  # fmt: skip
    assert torch.equal(after["0.bias"], model[0].bias)
    assert after["scale"] == 3
    assert not torch.equal(after["1.running_mean"], model[1].running_mean)


def test_asking_for_them_changes_nothing_else():
    model, private = seeded(batch_normed), batch(6)
    ready, weights = prepare(model, FEDAVG), Weights.of(model)
    silent = local_update(ready, private, FEDAVG, weights, ORDER)
    told = local_update(ready, private, FEDAVG, weights, ORDER, buffers=True)
    assert silent.buffers is None
    assert gap(dict(silent.tensors), dict(told.tensors)) == 0
    assert not any(m._forward_pre_hooks for m in ready.modules())


def test_instance_norm_with_statistics_is_refused_in_train_mode():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, track_running_stats=True))
    with pytest.raises(InputError, match=r"layer '1': instance norm with running statistics"):
        prepare(model, Plan())
    prepare(model, Plan(mode="eval"))
    prepare(nn.Sequential(nn.InstanceNorm2d(2)), Plan())
