"""The U-Net: shapes, refused settings, and that every level takes part."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from medpfl import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.models import UNet


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 24), (1, 8, 8, 8), (2, 4, 8, 12)], ids=str)
@pytest.mark.parametrize("norm", ["none", "batch", "group", "instance"])
def test_a_class_for_every_pixel(shape, norm):
    network = UNet(4, 2, norm).build(shape, 3, seed=0)
    logits = network(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 3, *shape[1:])
    assert logits.isfinite().all()
    assert (logits.flatten(2).std(2) > 0).all()


def test_every_parameter_has_a_part():
    network = UNet(4, 3).build((1, 16, 16), 3, seed=0)
    network(torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    norms = {name: float(p.grad.norm()) for name, p in network.named_parameters()}
    assert len(network.down) == len(network.up) == len(network.join) == 3
    assert [p for p in norms if not norms[p] > 0 and not p.endswith("0.bias")] == []  # of which instance norm takes


def test_a_pixel_tells_of_its_neighborhood_and_of_itself():
    network = UNet(4, 1, "none").build((1, 16, 16), 2, seed=0).double()
    x = torch.rand(1, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(network(x)[0, 0, 8, 8], x)
    assert slope[0, 0, 8, 8] != 0
    assert slope[0, 0, 8, 13:].abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 18, 16), (1, 16, 6), (1, 8, 8, 10)], ids=str)
def test_sides_that_cannot_be_halved(shape):
    with pytest.raises(InputError, match="must be divisible by 4"):
        UNet(4, 2).build(shape, 2, seed=0)


@pytest.mark.parametrize("arguments", [{"norm": "layer"}, {"depth": 0}, {"activation": "rely"}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(InputError):
        UNet(**arguments)


@pytest.mark.parametrize("loss", ["cross_entropy", "dice"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 4, 4, 4)], ids=str)
def test_a_stack_of_victims_is_a_loop_over_them(shape, loss):
    network = UNet(4, 1, "batch").build(shape, 3, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 2, *shape, dtype=torch.float64, generator=generator)
    masks = torch.randint(3, (2, 2, *shape[1:]), generator=generator)
    plan = Plan(batch_size=2, loss=loss)
    ready, weights = prepare(network, plan), Weights.of(network)

    def size(x, y):
        return sum(t.square().sum() for t in local_update(ready, Batch(x, y), plan, weights).tensors.values())

    looped = torch.stack([grad(size)(x, y) for x, y in zip(images, masks, strict=True)])
    assert (looped.flatten(2).abs().amax(2) > 0).all()
    assert ((looped - vmap(grad(size))(images, masks)) / looped.abs().max()).abs().max() < 1e-9


def test_the_update_is_the_gradient_that_plain_pytorch_computes():
    network = UNet(4, 1).build((1, 8, 8), 3, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (2, 8, 8), generator=generator)
    plan = Plan(batch_size=2)
    ours = local_update(prepare(network, plan), Batch(x, y), plan, Weights.of(network)).tensors
    nn.functional.cross_entropy(network(x), y).backward()
    assert all(torch.allclose(ours[name], p.grad, atol=1e-12) for name, p in network.named_parameters())
