"""The forward operator against slow oracles: autograd, ``torch.optim.SGD``, finite differences, loops."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import grad, vmap
from torch.nn import functional

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.federated.draws import Draws, draw
from medpfl.federated.local import cross_entropy, local_update
from medpfl.federated.ready import prepare
from tests.federated.networks import (
    NETWORKS,
    Tied,
    batch,
    dropping,
    gap,
    minus,
    network,
    plain,
    seeded,
    size_of,
    trained,
)

FEDAVG = Plan("FedAvg", 2, 6, epochs=2, learning_rate=0.3, momentum=0.9, weight_decay=0.01)


def update(model, batch, plan, draws=None, **options):
    """Return the update from a model that is not yet prepared."""
    return local_update(prepare(model, plan), batch, plan, Weights.of(model), draws, **options)


def gradient(model, batch, mode="train"):
    """Return the gradient by autograd, as the oracle."""
    model = copy.deepcopy(model).train(mode == "train")
    free = {k: p for k, p in model.named_parameters() if p.requires_grad}
    loss = functional.cross_entropy(model(batch.images), batch.labels)
    return dict(zip(free, torch.autograd.grad(loss, list(free.values())), strict=True))


def shuffled(plan, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Draws(torch.stack([torch.randperm(plan.images, generator=generator) for _ in range(plan.epochs)]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_fedsgd_is_the_gradient(name, mode):
    model, private = network(name), batch(4, size_of(name))
    sent = update(model, private, Plan(batch_size=4, mode=mode))
    assert (sent.kind, sent.buffers, sent.num_samples) == ("gradient", None, None)
    assert gap(sent.tensors, gradient(model, private, mode)) < 1e-12


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.1), (0.9, 0.1)])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["plain", "LeNet", "batch norm"])
def test_fedavg_is_the_optimizer_s_loop(name, mode, momentum, decay):
    plan = replace(FEDAVG, momentum=momentum, weight_decay=decay, mode=mode)
    model, private, draws = network(name), batch(6), shuffled(plan)
    sent = update(model, private, plan, draws)
    assert sent.kind == "difference"
    assert gap(sent.tensors, minus(trained(model, private, plan, draws), model)) < 1e-12


@pytest.mark.slow
def test_fedavg_of_a_resnet_is_the_optimizer_s_loop():
    plan = Plan("FedAvg", 2, 4, learning_rate=0.05, momentum=0.9, weight_decay=1e-3, mode="train")
    model, private, draws = network("ResNet-18"), batch(4, 48), shuffled(plan)
    sent = update(model, private, plan, draws)
    assert gap(sent.tensors, minus(trained(model, private, plan, draws), model)) < 1e-10


def test_without_an_order_the_images_are_taken_as_they_are():
    model, private = network("plain"), batch(6)
    sent = update(model, private, FEDAVG)
    assert gap(sent.tensors, minus(trained(model, private, FEDAVG, Draws()), model)) < 1e-12
    straight = Draws(torch.arange(6).expand(2, 6))
    assert gap(sent.tensors, update(model, private, FEDAVG, straight).tensors) == 0
    assert gap(sent.tensors, update(model, private, FEDAVG, shuffled(FEDAVG)).tensors) > 1e-4


def test_the_order_within_one_batch_says_nothing():
    plan = Plan("FedAvg", 6, epochs=2)
    model, private = network("plain"), batch(6)
    turned = Batch(private.images.flip(0), private.labels.flip(0))
    assert gap(update(model, private, plan).tensors, update(model, turned, plan, shuffled(plan)).tensors) < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LeNet", "ResNet-18"])
def test_one_step_of_fedavg_is_the_learning_rate_times_the_gradient(name):
    model, private = network(name), batch(3, size_of(name))
    step = update(model, private, Plan("FedAvg", 3, learning_rate=0.25, momentum=0.7)).tensors
    slope = update(model, private, Plan(batch_size=3)).tensors
    assert gap(step, {k: -0.25 * t for k, t in slope.items()}) < 1e-14


@pytest.mark.parametrize("plan", [Plan(batch_size=4), Plan("FedAvg", 2, 4, epochs=2)], ids=["FedSGD", "FedAvg"])
def test_labels_and_their_probabilities_are_the_same(plan):
    model, private = network("plain"), batch(4)
    soft = Batch(private.images, functional.one_hot(private.labels, 3).double())
    draws = shuffled(plan)
    assert gap(update(model, private, plan, draws).tensors, update(model, soft, plan, draws).tensors) < 1e-14


def test_cross_entropy_is_torch_s():
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 30
    labels, soft = torch.tensor([0, 3, 1, 1, 2]), torch.softmax(logits.flip(0), 1)
    assert torch.allclose(cross_entropy(logits, labels), functional.cross_entropy(logits, labels))
    assert torch.allclose(cross_entropy(logits, soft), functional.cross_entropy(logits, soft))


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "probabilities"])
@pytest.mark.parametrize(
    "plan",
    [Plan(batch_size=2), Plan("FedAvg", 1, 2, learning_rate=0.5, momentum=0.5, weight_decay=0.1)],
    ids=["FedSGD", "two steps of FedAvg"],
)
def test_the_derivative_by_the_images_is_that_of_finite_differences(plan, soft):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)))
    ready, weights, private = prepare(model, plan), Weights.of(model), batch(2, 3)
    images = private.images.clone().requires_grad_()
    labels = private.labels
    if soft:
        labels = torch.rand(2, 3, dtype=torch.float64).softmax(1).requires_grad_()

    def forward(images, labels):
        return tuple(local_update(ready, Batch(images, labels), plan, weights).tensors.values())

    assert torch.autograd.gradcheck(forward, (images, labels))


TOGETHER = [("ResNet-18", Plan(batch_size=2))] + [
    (name, plan)
    for name in ("plain", "group norm", "batch norm", "tied", "LeNet", "dropout")
    for plan in (Plan(batch_size=2), Plan("FedAvg", 2, 4, epochs=2, momentum=0.5))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "plan"), TOGETHER, ids=str)
def test_victims_together_are_victims_one_by_one(name, plan):
    model = seeded(dropping) if name == "dropout" else network(name)
    ready, weights = prepare(model, plan), Weights.of(model)
    victims = [batch(plan.images, size_of(name), seed) for seed in range(3)]
    draws = [draw(ready, v, plan, torch.Generator().manual_seed(s)) for s, v in enumerate(victims)]
    assert (name == "dropout") == bool(draws[0].masks)
    assert (plan.algorithm == "FedAvg") == (draws[0].order is not None)

    def one(known):
        drawn = Draws(known.get("order"), known["masks"])
        return dict(local_update(ready, Batch(known["images"], known["labels"]), plan, weights, drawn).tensors)

    known = {"images": [v.images for v in victims], "labels": [v.labels for v in victims]}
    known |= {"order": [d.order for d in draws]} if plan.algorithm == "FedAvg" else {}
    stacked = {key: torch.stack(values) for key, values in known.items()}
    stacked["masks"] = {k: torch.stack([d.masks[k] for d in draws]) for k in draws[0].masks}
    together = vmap(one)(stacked)
    for i, (victim, drawn) in enumerate(zip(victims, draws, strict=True)):
        alone = dict(local_update(ready, victim, plan, weights, drawn).tensors)
        largest = max(float(t.abs().max()) for t in alone.values())
        assert gap({k: t[i] for k, t in together.items()}, alone) < 1e-13 * max(1, largest)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet-18", "LeNet", "batch norm"])
def test_an_attacker_s_derivatives_of_victims_together_are_those_one_by_one(name):
    plan = Plan(batch_size=2)
    model = network(name)
    ready, weights, labels = prepare(model, plan), Weights.of(model), torch.tensor([0, 2])
    victims = torch.stack([batch(2, size_of(name), seed).images for seed in range(2)])

    def size(images):
        sent = local_update(ready, Batch(images, labels), plan, weights).tensors
        return sum(t.square().sum() for t in sent.values())

    with torch.no_grad():  # as the attacks do; `grad` does not see it
        together = vmap(grad(size))(victims)
    for images, found in zip(victims, together, strict=True):
        leaf = images.clone().requires_grad_()
        (alone,) = torch.autograd.grad(size(leaf), leaf)
        assert torch.allclose(found, alone, rtol=1e-9, atol=1e-12 * float(alone.abs().max()))
        assert found.abs().max() > 1e-9


@pytest.mark.parametrize("name", ["plain", "group norm", "LeNet", "tied", "dropout"])
@pytest.mark.parametrize("plan", [Plan(batch_size=4), Plan("FedAvg", 2, 4, epochs=2)], ids=["FedSGD", "FedAvg"])
def test_per_sample_gradients_have_the_batch_s_mean(name, plan):
    model = seeded(dropping) if name == "dropout" else network(name)
    private = batch(4)
    draws = draw(prepare(model, plan), private, plan, torch.Generator().manual_seed(1))
    shapes = []

    def moment(gradients):
        shapes.append({k: t.shape[1:] for k, t in gradients.items()})
        assert {len(t) for t in gradients.values()} == {plan.batch_size}
        return gradients

    sampled = update(model, private, plan, draws, moment=moment)
    whole = update(model, private, plan, draws)
    assert gap(sampled.tensors, whole.tensors) < 1e-14
    assert shapes == [{k: t.shape for k, t in whole.tensors.items()}] * plan.steps


def test_clipped_per_sample_gradients_are_those_of_single_images():
    model, private = network("group norm"), batch(5)

    def clip(gradients):
        norms = sum(t.flatten(1).square().sum(1) for t in gradients.values()).sqrt()
        factors = (0.3 / norms).clamp(max=1)
        return {k: t * factors.view(-1, *[1] * (t.ndim - 1)) for k, t in gradients.items()}

    mean = dict.fromkeys(dict(model.named_parameters()), 0.0)
    for i in range(5):
        alone = gradient(model, Batch(private.images[i : i + 1], private.labels[i : i + 1]))
        factor = min(1.0, 0.3 / float(torch.cat([t.flatten() for t in alone.values()]).norm()))
        assert factor < 1
        mean = {k: mean[k] + factor * t / 5 for k, t in alone.items()}
    assert gap(update(model, private, Plan(batch_size=5), moment=clip).tensors, mean) < 1e-14


def test_batch_norm_in_train_mode_has_no_per_sample_gradients():
    model, private = network("batch norm"), batch(4)
    with pytest.raises(InputError, match=r"layer '1': batch norm in train mode mixes the images"):
        update(model, private, Plan(batch_size=4), moment=dict, buffers=True)
    plan = Plan(batch_size=4, mode="eval")
    assert gap(update(model, private, plan, moment=dict).tensors, update(model, private, plan).tensors) < 1e-14


def test_frozen_parameters_are_kept_and_not_sent():
    model, private = network("plain"), batch(6)
    model[0].weight.requires_grad_(False)
    for plan in (Plan(batch_size=6), FEDAVG):
        sent = update(model, private, plan).tensors
        assert set(sent) == {"0.bias", "3.weight", "3.bias"}
    assert gap(sent, minus(trained(model, private, FEDAVG, Draws()), model)) < 1e-12
    assert gap(update(model, private, Plan(batch_size=6)).tensors, gradient(model, private)) < 1e-14


def test_tied_weights_are_sent_once_and_stay_tied():
    model, private = seeded(Tied), batch(6)
    sent = update(model, private, FEDAVG).tensors
    assert "inside.weight" in sent
    assert "last.weight" not in sent
    after = trained(model, private, FEDAVG, Draws())
    assert after.last.weight is after.inside.weight
    assert gap(sent, minus(after, model)) < 1e-12


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["plain", "batch norm", "tied"])
def test_the_weights_handed_over_count_not_the_model_s(name, mode):
    model, other, private = network(name), network(name), batch(4)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.add_(1)
    other.requires_grad_(True)
    plan = Plan(batch_size=4, mode=mode)
    sent = local_update(prepare(other, plan), private, plan, Weights.of(model), buffers=True)
    own = local_update(prepare(model, plan), private, plan, Weights.of(model), buffers=True)
    assert gap(sent.tensors, own.tensors) == 0
    assert gap(sent.buffers, own.buffers) == 0 if own.buffers else sent.buffers == own.buffers


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_nothing_handed_over_is_changed(mode):
    model, private = network("batch norm"), batch(6)
    plan = replace(FEDAVG, mode=mode)
    ready, weights = prepare(model, plan), Weights.of(model)
    kept = [*model.state_dict().values(), *ready.state_dict().values(), private.images, private.labels]
    before = [t.clone() for t in kept]
    modes = [m.training for m in model.modules()]
    sent = local_update(ready, private, plan, weights, shuffled(plan), buffers=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
    assert [m.training for m in model.modules()] == modes
    assert not any(t.requires_grad for t in sent.tensors.values())


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 3),
    batches=st.integers(1, 2),
    channels=st.integers(1, 3),
    size=st.integers(3, 9),
    classes=st.integers(1, 4),
    algorithm=st.sampled_from(["FedSGD", "FedAvg"]),
    mode=st.sampled_from(["train", "eval"]),
)
def test_names_shapes_and_dtypes_are_the_parameters(images, batches, channels, size, classes, algorithm, mode):
    model = plain(channels, size, classes)
    local = images * batches if algorithm == "FedAvg" else None
    plan = Plan(algorithm, images, local, mode=mode)
    private = Batch(torch.rand(plan.images, channels, size, size), torch.randint(classes, (plan.images,)))
    sent = update(model, private, plan, buffers=True)
    parameters = dict(model.named_parameters())
    assert list(sent.tensors) == list(parameters)
    for name, tensor in sent.tensors.items():
        assert (tensor.shape, tensor.dtype) == (parameters[name].shape, torch.float32)
        assert tensor.isfinite().all()
    assert sent.buffers == {}
    assert (sum(float(t.abs().sum()) for t in sent.tensors.values()) > 0) == (classes > 1)
