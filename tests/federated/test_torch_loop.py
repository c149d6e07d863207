"""`local_update` against a plain torch loop: smaller last batch, Nesterov, dampening, label smoothing, dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medpfl import Batch, Plan, Weights, prepare
from medpfl.federated.draws import draw
from medpfl.federated.local import local_update

DATA = Batch(
    torch.rand(10, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2, 2, 1, 0, 0])
)


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(4)
    middle = [nn.BatchNorm2d(3)] if norm else []
    return nn.Sequential(nn.Conv2d(1, 3, 3), *middle, nn.Tanh(), nn.Flatten(), nn.Linear(48, 3))


def torch_loop(model: nn.Module, plan: Plan, order: torch.Tensor) -> dict[str, torch.Tensor]:
    """Train as a client's own program does, and return the difference."""
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=plan.learning_rate,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        dampening=plan.dampening,
        nesterov=plan.nesterov,
    )
    loss = nn.CrossEntropyLoss(label_smoothing=plan.label_smoothing)
    model.train(plan.mode == "train")
    for epoch in order:
        for index in epoch.split(plan.batch_size):  # as a DataLoader with drop_last=False
            optimizer.zero_grad()
            loss(model(DATA.images[index]), DATA.labels[index]).backward()
            optimizer.step()
    return {k: v.detach() - before[k] for k, v in model.named_parameters()}


PLANS = {
    "smaller last batch": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "dampening": {"momentum": 0.5, "dampening": 0.3},
    "dampening without momentum": {"dampening": 0.3},
    "all": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "label_smoothing": 0.2},
    "label smoothing": {"label_smoothing": 0.1},
    "eval": {"mode": "eval"},
}


@pytest.mark.parametrize("settings", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_a_torch_loop_gives_the_same_update(settings, norm):
    plan = Plan("FedAvg", batch_size=4, local_images=10, epochs=2, learning_rate=0.2, **settings)
    model = network(norm)
    ready, weights = prepare(model, plan), Weights.of(model)
    weights = Weights(
        {k: v.clone() for k, v in weights.parameters.items()}, {k: v.clone() for k, v in weights.buffers.items()}
    )
    draws = draw(ready, DATA, plan, torch.Generator().manual_seed(3))
    sent = local_update(ready, DATA, plan, weights, draws, buffers=True)
    expected = torch_loop(model, plan, draws.order)
    assert plan.steps == 6
    for name, value in expected.items():
        torch.testing.assert_close(sent.tensors[name], value, rtol=1e-4, atol=1e-6)
    for name, value in model.named_buffers():
        torch.testing.assert_close(sent.buffers[name], value, rtol=1e-4, atol=1e-6)


def test_gradient_weights_are_the_coefficients_of_the_loop():
    """With the gradient of step s set to 1 and all others to 0, the weight moves by the coefficient."""
    for settings in PLANS.values():
        plan = Plan("FedAvg", batch_size=4, local_images=10, epochs=2, learning_rate=0.5, **settings)
        for step, expected in enumerate(plan.gradient_weights()):
            weight = nn.Parameter(torch.zeros(1))
            names = ("momentum", "dampening", "nesterov")
            optimizer = torch.optim.SGD([weight], lr=0.5, **{name: getattr(plan, name) for name in names})
            for now in range(plan.steps):
                weight.grad = torch.ones(1) * (now == step)
                optimizer.step()
            assert float(-weight.detach() / 0.5) == pytest.approx(expected, rel=1e-5)


def test_masks_of_a_smaller_last_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    plan = Plan("FedAvg", batch_size=4, local_images=10)
    ready = prepare(model, plan)
    draws = draw(ready, DATA, plan, torch.Generator().manual_seed(3))
    assert draws.masks["2"].shape == (3, 4, 8)
    sent = local_update(ready, DATA, plan, Weights.of(model), draws)
    assert all(t.isfinite().all() for t in sent.tensors.values())
