"""Networks as a training script has them: in a wrapper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medpfl.models.wrapped import unwrapped


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.slow
def test_data_parallel_and_compile_are_the_network_inside():
    inner = network()
    assert unwrapped(nn.DataParallel(inner)) is inner
    assert unwrapped(torch.compile(nn.DataParallel(inner))) is inner
    assert unwrapped(inner) is inner


def test_opacus_wrapper_is_the_network_inside_and_the_user_s_own_keeps_its_hooks():
    import opacus

    wrapper = opacus.GradSampleModule(network())
    inner = unwrapped(wrapper)
    assert type(inner) is nn.Sequential
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(inner(images), network()(images))
    slopes = torch.func.grad(lambda p: torch.func.functional_call(inner, p, (images,)).square().sum())(
        dict(inner.named_parameters())
    )
    assert all(slope.any() for slope in slopes.values())
    wrapper(images.requires_grad_()).sum().backward()
    assert all(p.grad_sample.shape[0] == 3 for p in wrapper.parameters())
