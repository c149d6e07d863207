"""Every member of ``models.__all__`` keeps its role's contract. One row per model, with its variants."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from medpfl import models
from medpfl.core.roles import Model
from medpfl.core.types import Weights
from medpfl.models import MLP, ConvNet, DenseNet121, LeNet, ResNet, UNet, ViT

ROWS = {
    "ConvNet": [
        ConvNet(8, 2),
        ConvNet(8, 2, "batch", "tanh"),
        ConvNet(12, 3, "group", "sigmoid"),
        ConvNet(8, 2, "instance", "gelu", 0.3),
    ],
    "DenseNet121": [DenseNet121()],
    "LeNet": [LeNet("dlg"), LeNet("idlg"), LeNet("cpl")],
    "MLP": [MLP(), MLP((20, 10), "tanh", 0.2), MLP(())],
    "ResNet": [ResNet(18), ResNet(34)],
    "UNet": [UNet(), UNet(4, 3, "batch", "sigmoid"), UNet(4, 1, "group", "gelu")],
    "ViT": [ViT(8, 2, 24, 2), ViT(4, 1, 12, 3, mlp=30, dropout=0.1)],
}
VARIANTS = [model for row in ROWS.values() for model in row]
SHAPES = [(1, 32, 32), (3, 32, 32), (3, 64, 64), (1, 40, 32)]


def images(shape, count=2):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def outputs(model, classes, shape):
    """Return the output shape for two images: one class each, or one per pixel."""
    return (2, classes, *shape[1:]) if isinstance(model, UNet) else (2, classes)


def test_every_model_has_a_row():
    assert sorted(ROWS) == sorted(models.__all__)
    assert all(type(model).__name__ == name for name, row in ROWS.items() for model in row)
    assert all(isinstance(model, Model) for model in VARIANTS)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("model", VARIANTS, ids=repr)
def test_logits(model, shape):
    network = model.build(shape, 5, seed=0).eval()
    with torch.no_grad():
        logits = network(images(shape))
    assert logits.shape == outputs(model, 5, shape)
    assert logits.isfinite().all()
    assert (logits.std(0) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("model", VARIANTS, ids=repr)
def test_the_seed_alone_makes_the_weights(model):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = Weights.of(model.build((3, 32, 32), 4, seed=3)).parameters
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = (Weights.of(model.build((3, 32, 32), 4, seed=s)).parameters for s in (3, 4))
    assert all(torch.equal(one[k], same[k]) for k in one)
    drawn = [k for k in one if one[k].std() > 0]
    assert any("weight" in k for k in drawn)
    assert all(not torch.equal(one[k], other[k]) for k in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("model", VARIANTS, ids=repr)
def test_own_arguments_go_before_the_data_s(model):
    chosen = dataclasses.replace(model, classes=7, channels=2)
    with torch.no_grad():
        assert chosen.build((1, 32, 32), 3, seed=0).eval()(images((2, 32, 32))).shape == outputs(model, 7, (2, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("model", VARIANTS, ids=repr)
def test_double_backward(model):
    """Gradient matching needs it: the derivative of a gradient's norm with respect to the images."""
    network, x = model.build((1, 32, 32), 3, seed=0).train(), images((1, 32, 32)).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # as `local_update` does
        logits = network(x)
        labels = torch.tensor([0, 2]).view(-1, *[1] * (logits.ndim - 2)).expand(2, *logits.shape[2:])
        loss = nn.functional.cross_entropy(logits, labels)
    gradient = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    (direction,) = torch.autograd.grad(sum(g.square().sum() for g in gradient), x)
    assert direction.shape == x.shape
    assert direction.isfinite().all()
    assert (direction.flatten(1).abs().amax(1) > 0).all()
