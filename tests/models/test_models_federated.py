"""An attacker's computation on every model: an update distance's derivative, over a stack of victims."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.federated.draws import Draws, draw
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.models import MLP, ConvNet, DenseNet121, LeNet, ResNet, ViT
from medpfl.models.user import UserModel

VICTIMS = 2
MODELS = {
    "ConvNet": (ConvNet(4, 2, "batch", "relu", 0.3), (1, 16, 16)),
    "ConvNet, group norm": (ConvNet(4, 2, "group", "gelu"), (3, 16, 16)),
    "ConvNet, instance norm": (ConvNet(4, 2, "instance", "tanh"), (1, 16, 16)),
    "ConvNet of volumes": (ConvNet(4, 2, "batch", "relu", 0.2), (1, 8, 8, 8)),
    "DenseNet121": (DenseNet121(), (1, 64, 64)),
    "LeNet": (LeNet("dlg"), (1, 16, 16)),
    "MLP": (MLP((12, 8), "tanh", 0.2), (1, 10, 10)),
    "MLP of volumes": (MLP((12,)), (1, 6, 6, 6)),
    "ResNet": (ResNet(18), (1, 32, 32)),
    "ViT": (ViT(8, 2, 24, 2, dropout=0.2), (3, 16, 16)),
}
PLANS = {
    "FedSGD, train": Plan(batch_size=2),
    "FedSGD, eval": Plan(batch_size=2, mode="eval"),
    "FedAvg, train": Plan("FedAvg", 2, 4, learning_rate=0.05),
}
LARGE = ("DenseNet121", "ResNet")
# Large networks are tried in one step only.
CASES = [(name, plan) for name in MODELS for plan in PLANS if plan.startswith("FedSGD") or name not in LARGE]


def scene(model, shape, plan):
    """Return the prepared network and its weights, the victims' images and draws, and the update to match."""
    network = model.build(shape, 3, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(VICTIMS, plan.images, *shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, (VICTIMS, plan.images), generator=generator)
    # Statistics that are not those of a new network, so that eval mode is tested too.
    network.train()(images[0])
    ready = prepare(network, plan)
    draws = [draw(ready, Batch(i, k), plan, generator) for i, k in zip(images, labels, strict=True)]
    return ready, Weights.of(network), images, labels, draws


def gradients(ready, weights, plan, images, labels, draws, stacked):
    """Return the derivative of each victim's squared update with respect to its images."""

    def size(x, y, order, masks):
        update = local_update(ready, Batch(x, y), plan, weights, Draws(order, masks)).tensors
        return sum(t.square().sum() for t in update.values())

    if not stacked:
        return torch.stack([grad(size)(x, y, d.order, d.masks) for x, y, d in zip(images, labels, draws, strict=True)])
    order = None if draws[0].order is None else torch.stack([d.order for d in draws])
    masks = {name: torch.stack([d.masks[name] for d in draws]) for name in draws[0].masks}
    axes = (0, 0, None if order is None else 0, 0)
    return vmap(grad(size), in_dims=axes)(images, labels, order, masks)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "plan"), CASES)
def test_a_stack_of_victims_is_a_loop_over_them(name, plan):
    (model, shape), plan = MODELS[name], PLANS[plan]
    ready, weights, images, labels, draws = scene(model, shape, plan)
    looped = gradients(ready, weights, plan, images, labels, draws, stacked=False)
    stacked = gradients(ready, weights, plan, images, labels, draws, stacked=True)
    assert looped.shape == images.shape
    assert (looped.flatten(2).abs().amax(2) > 0).all()
    scale = looped.flatten(1).abs().amax(1).view(VICTIMS, *[1] * (looped.ndim - 1))
    assert ((looped - stacked) / scale).abs().max() < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_update_is_the_gradient_that_plain_pytorch_computes(name):
    model, shape = MODELS[name]
    plan = Plan(batch_size=2, mode="eval")
    ready, weights, images, labels, _ = scene(model, shape, plan)
    ours = local_update(ready, Batch(images[0], labels[0]), plan, weights).tensors
    plain = copy.deepcopy(ready)
    nn.functional.cross_entropy(plain(images[0]), labels[0]).backward()
    theirs = {key: p.grad for key, p in plain.named_parameters()}
    assert ours.keys() == theirs.keys()
    largest = max(float(t.abs().max()) for t in theirs.values())
    assert all((ours[key] - t).abs().max() < 1e-10 * largest for key, t in theirs.items())


def test_dropout_masks_are_drawn_for_every_dropout_of_a_transformer():
    plan = Plan(batch_size=2)
    ready, *_, draws = scene(ViT(8, 2, 24, 2, dropout=0.2), (3, 16, 16), plan)
    # The embedding's, and in each layer one after the attention and two in the MLP.
    assert len(draws[0].masks) == 1 + 2 * 3
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        ready(torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(torch.get_rng_state(), before)


MONAI = {
    "DenseNet121": (
        "monai.networks.nets:DenseNet121(init_features=8, growth_rate=4, block_config=(2, 2))",
        (1, 32, 32),
    ),
    "ViT": (
        "monai.networks.nets:ViT(patch_size=8, hidden_size=24, mlp_dim=48, num_layers=2, num_heads=2, "
        "classification=True, num_classes=3, spatial_dims=2)",
        (1, 16, 16),
    ),
    "ResNet of volumes": (
        "monai.networks.nets:ResNet(block='basic', layers=(1, 1, 1, 1), block_inplanes=(4, 4, 4, 4), "
        "n_input_channels=1, num_classes=3)",
        (1, 32, 32, 32),
    ),
}


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")  # MONAI's own
@pytest.mark.parametrize("plan", list(PLANS.values())[:2], ids=list(PLANS)[:2])
@pytest.mark.parametrize("name", MONAI)
def test_networks_of_monai(name, plan):
    spec, shape = MONAI[name]
    ready, weights, images, labels, draws = scene(UserModel.parse(spec), shape, plan)
    looped = gradients(ready, weights, plan, images, labels, draws, stacked=False)
    stacked = gradients(ready, weights, plan, images, labels, draws, stacked=True)
    assert (looped.flatten(2).abs().amax(2) > 0).all()
    assert ((looped - stacked) / looped.abs().max()).abs().max() < 1e-9
