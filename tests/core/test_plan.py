"""A plan is checked when it is created."""

import dataclasses
from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.spec import build


@pytest.mark.slow
@given(
    batch_size=st.integers(1, 8),
    batches=st.integers(1, 5),
    epochs=st.integers(1, 5),
    rates=st.tuples(st.floats(1e-6, 10), *[st.just(0.0) | st.floats(1e-30, 1)] * 2),
    mode=st.sampled_from(["train", "eval"]),
    sends=st.sampled_from([(), ("num_samples",), ("buffers", "num_samples")]),
)
def test_fedavg_counts_and_spec_both_ways(batch_size, batches, epochs, rates, mode, sends):
    plan = Plan("FedAvg", batch_size, batch_size * batches, epochs, *rates, mode=mode, sends=sends)
    assert plan.images == batch_size * batches
    assert plan.steps == epochs * batches
    assert build(repr(plan), {"Plan": Plan}) == plan


def test_one_batch_unless_said_otherwise():
    assert (Plan(batch_size=4).images, Plan(batch_size=4).steps) == (4, 1)
    assert (Plan("FedAvg", 4, epochs=3).images, Plan("FedAvg", 4, epochs=3).steps) == (4, 3)


def test_poisson_sampling_is_of_the_local_images():
    plan = Plan("FedSGD", 2, 8, sampling="poisson")
    assert (plan.rate, plan.steps, plan.images) == (0.25, 1, 8)
    assert (Plan("FedAvg", 2, 8, 3, sampling="poisson").steps, Plan(batch_size=2, sampling="poisson").rate) == (12, 1)
    assert build(repr(plan), {"Plan": Plan}) == plan


def test_frozen_and_comparable():
    plan = Plan(sends=["buffers"])  # as JSON gives it
    assert plan == Plan(sends=("buffers",))
    assert hash(plan) == hash(Plan(sends=("buffers",)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.epochs = 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "fedsgd"}, "choose FedSGD or FedAvg"),
        ({"mode": "test"}, "choose train or eval"),
        ({"loss": "mse"}, "cross_entropy"),
        ({"sampling": "fixed"}, "choose shuffle or poisson"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1.5}, "batch_size is 1.5: it must be a whole number"),
        ({"batch_size": True}, "whole number"),
        ({"algorithm": "FedAvg", "epochs": 0}, "epochs is 0"),
        ({"algorithm": "FedAvg", "epochs": -1}, "epochs is -1"),
        ({"algorithm": "FedAvg", "local_images": 0}, "local_images is 0"),
        ({"algorithm": "FedAvg", "local_images": 4.0}, "local_images is 4.0"),
        ({"algorithm": "FedAvg", "batch_size": 4, "local_images": 2}, r"at least batch_size \(4\)"),
        ({"nesterov": True}, "nesterov needs a momentum"),
        ({"loss": "dice", "label_smoothing": 0.1}, "label_smoothing belongs to the loss cross_entropy"),
        ({"local_images": 2}, "FedSGD sends one gradient"),
        ({"epochs": 2}, "FedSGD sends one gradient"),
        ({"epochs": 2, "sampling": "poisson"}, "FedSGD sends one gradient"),
        ({"local_images": 5, "batch_size": 2, "sampling": "poisson"}, "multiple of batch_size"),
        ({"sends": ("buffers", "images")}, r"sends contains \['images'\]"),
        *(({name: value}, f"{name} is ") for name in ("momentum", "weight_decay") for value in (-1e-9, nan, inf)),
        *(({"learning_rate": value}, "learning_rate") for value in (0, -0.1, nan, inf)),
    ],
)
def test_out_of_range(arguments, message):
    with pytest.raises(InputError, match=message):
        Plan(**arguments)


@given(*[st.integers(0, 9).map(lambda tenths: tenths / 10)] * 3, st.booleans(), st.integers(1, 5), st.floats(0.01, 0.5))
def test_the_kept_share_is_what_torch_leaves_of_a_weight_without_gradients(decay, momentum, damped, ahead, steps, rate):
    nesterov = ahead and momentum > 0
    options = {
        "momentum": momentum,
        "weight_decay": decay,
        "dampening": 0 if nesterov else damped,
        "nesterov": nesterov,
    }
    plan = Plan("FedAvg", local_images=steps, learning_rate=rate, **options)
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=rate, **options)
    for _ in range(steps):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert plan.kept_share() == pytest.approx(weight.item(), rel=1e-12)
