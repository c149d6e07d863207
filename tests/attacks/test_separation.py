"""Separation: sources of a kernel's gradient, their link to images, and the walk through a batch."""

import math
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medpfl.attacks import Separation
from medpfl.attacks.deep.backward_walk import peel
from medpfl.attacks.deep.contrast import stated_variances, with_contrast
from medpfl.attacks.deep.graph import exact, graph_of
from medpfl.attacks.deep.separated_start import _Reading, entrances, separated_start
from medpfl.attacks.deep.sources import separate
from medpfl.attacks.deep.walk_state import Peeled
from medpfl.attacks.separation import _certificate
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.models import MLP, ConvNet, LeNet
from tests.attacks.residual import built
from tests.attacks.scenes import scene

CHANNELS = 96


def planted(rank: int, seed: int, channels: int = CHANNELS, sparse: float = 0.45) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sources (rank, channels), rectified and of unit norm, and their gradient matrix (128, channels)."""
    generator = torch.Generator().manual_seed(seed)
    shift = math.sqrt(2) * torch.erfinv(torch.tensor(2 * sparse - 1)).double()
    inputs = (torch.randn(rank, channels, generator=generator, dtype=torch.float64) - shift).clamp(min=0)
    inputs = functional.normalize(inputs, dim=1)
    return inputs, torch.randn(128, rank, generator=generator, dtype=torch.float64) @ inputs


def cosines(found: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return each planted source's largest cosine to a found one."""
    return (functional.normalize(inputs, dim=1) @ functional.normalize(found, dim=1).T).amax(1)


@settings(max_examples=25, deadline=None)
@example(11, 426)  # one source has the most of no channel
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_planted_sources_are_all_found(rank, seed):
    inputs, matrix = planted(rank, seed)
    found = separate(matrix)
    assert found.rank == rank
    assert found.complete
    assert cosines(found.inputs, inputs).min() > 1 - 1e-9
    assert min(found.zeros) >= found.required


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 10), st.integers(0, 10**6))
def test_dense_inputs_give_no_certified_source(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(rank, CHANNELS, generator=generator, dtype=torch.float64)
    matrix = torch.randn(128, rank, generator=generator, dtype=torch.float64) @ inputs
    assert not len(separate(matrix).inputs)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_noise_alone_gives_no_certified_source(seed):
    noise = torch.randn(128, CHANNELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = separate(noise)
    assert not len(found.inputs)
    assert found.rank == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1e-3, 0.01, 0.03]))
def test_a_certified_source_under_noise_is_a_planted_one(seed, noise):
    inputs, matrix = planted(4, seed, 256)
    drawn = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    found = separate(matrix + noise * matrix.square().mean().sqrt() * drawn)
    assert len(found.inputs) == 4
    assert cosines(inputs, found.inputs).min() > 1 - max(10 * noise, 1e-9) ** 2


def nested(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of four sources, the support of one of which lies inside that of another."""
    inputs, _ = planted(4, seed, 256)
    inputs[2] = inputs[2] * (inputs[0] > 0)
    return torch.randn(128, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ inputs, inputs


@pytest.mark.parametrize("seed", range(6))
def test_a_source_inside_another_ones_support_is_never_read_wrong(seed):
    """One source minus part of the other is a vertex of the cone too, with many zeros."""
    matrix, inputs = nested(seed)
    found = separate(matrix)
    assert not len(found.inputs) or cosines(inputs, found.inputs).min() > 1 - 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.003, 0.03, 0.1])
@pytest.mark.parametrize("rank", [4, 8])
def test_noise_on_dense_inputs_certifies_none(rank, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(rank, 128, generator=generator, dtype=torch.float64)
    matrix = torch.randn(128, rank, generator=generator, dtype=torch.float64) @ inputs
    drawn = torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
    assert not len(separate(matrix + noise * matrix.square().mean().sqrt() * drawn).inputs)


def test_dead_channels_are_no_zeros():
    """A dense mixture has no zeros, but 60 channels that no image uses would pass for some."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(4, CHANNELS, generator=generator, dtype=torch.float64)
    inputs[:, :60] = 0
    matrix = torch.randn(128, 4, generator=generator, dtype=torch.float64) @ inputs
    assert not len(separate(matrix).inputs)


def test_one_source_twice_is_one_source():
    inputs, _ = planted(3, 5)
    doubled = torch.cat([inputs, inputs[:1]])
    matrix = torch.randn(128, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ doubled
    found = separate(matrix)
    assert found.rank == 3
    assert cosines(found.inputs, inputs).min() > 1 - 1e-9


@pytest.mark.parametrize("matrix", [torch.zeros(8, 8), torch.full((8, 8), math.nan)])
def test_matrices_that_show_nothing(matrix):
    assert not len(separate(matrix).inputs)


def varied(count: int) -> torch.Tensor:
    """Return images (count, 1, 12, 12) that differ in every part."""
    coarse = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(7))
    return functional.interpolate(coarse, (12, 12), mode="bilinear")


def seen_of(mode: Literal["train", "eval"], images: int, *, seed: int = 0, noise: float = 0.0):
    """Return the graph, the sent gradients, the images and their labels of a small residual network."""
    plan = Plan(batch_size=images, mode=mode)
    network = prepare(built(width=80, last=True, seed=seed), plan)
    shown = varied(images)
    labels = torch.arange(images) % 3
    weights = Weights.of(network)
    update = local_update(network, Batch(shown, labels), plan, weights)
    sent = exact(update.tensors)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sent.items():
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        sent[name] = tensor + noise * tensor.square().mean().sqrt() * drawn
    return graph_of(network, weights, (1, 12, 12), images), sent, shown, labels


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "images"), [("train", 3), ("train", 6), ("eval", 1), ("eval", 3), ("eval", 6)])
def test_all_images_are_walked_through(mode, images):
    graph, sent, shown, labels = seen_of(mode, images)
    begun = separated_start(graph, sent)
    truth = graph.after({graph.image: shown.double()})
    mine, true = (t.flatten(1) for t in (begun.start.value, truth[begun.start.node]))
    order = (functional.normalize(mine, dim=1) @ functional.normalize(true, dim=1).T).argmax(1)
    assert sorted(order.tolist()) == list(range(images))
    assert torch.equal(begun.start.pull.argmin(1), labels[order])
    read = peel(graph, sent, begun.start)
    maps = [node for node in read.known if graph.rectifier(node)]
    assert len(maps) >= 4, read.reasons
    for node in maps:
        right = truth[node][order]
        error = (read.known[node] - right).flatten(1).norm(dim=1) / right.flatten(1).norm(dim=1)
        assert error.max() < 1e-3, node


@pytest.mark.slow
def test_an_image_is_read_on_a_map_of_one_position():
    plan = Plan(batch_size=1, mode="eval")
    network = prepare(built(width=80, last=True), plan)
    shown, labels, weights = varied(1)[:, :, 3:9, 3:9], torch.tensor([2]), Weights.of(network)
    update = local_update(network, Batch(shown, labels), plan, weights)
    graph = graph_of(network, weights, (1, 6, 6), 1)
    begun = separated_start(graph, exact(update.tensors))
    true = graph.after({graph.image: shown.double()})[begun.start.node]
    assert tuple(true.shape[2:]) == (1, 1)
    order = torch.cdist(begun.start.value.flatten(1), true.flatten(1)).argmin(1)
    assert torch.allclose(begun.start.value, true[order], rtol=1e-3, atol=1e-5)
    assert torch.equal(begun.start.pull.argmin(1), labels[order])


def test_a_graph_without_an_entrance_is_refused():
    network = prepare(LeNet().build((1, 12, 12), 3, 0), Plan())
    weights = Weights.of(network)
    with pytest.raises(InputError, match=r"no hidden linear layer has a ReLU .* and no 3 x 3 convolution"):
        separated_start(graph_of(network, weights, (1, 12, 12), 2), exact(weights.parameters))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("head.weight", "the last layer's gradient does not fit its inputs"),
        ("last.first.0.weight", "its positions could not be linked|of \\d+ sources were certified"),
        ("last.first.1.bias", "the factors between its images are not all positive"),
    ],
)
def test_gradients_that_do_not_fit_each_other_are_refused(name, reason):
    graph, sent, _, _ = seen_of("eval", 3)
    drawn = torch.randn(sent[name].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if name == "last.first.1.bias":
        sent[name] = -sent[name]
    elif name == "last.first.0.weight":  # the weights between the corners
        sent[name][:, :, 0, 1], sent[name][:, :, 1, 0] = drawn[:, :, 0, 1], drawn[:, :, 1, 0]
    else:
        sent[name] = drawn
    with pytest.raises(InputError, match=reason):
        separated_start(graph, sent)


@pytest.mark.slow
def test_noise_beyond_reading_is_refused_and_never_read_wrong():
    graph, sent, _, _ = seen_of("train", 3, noise=0.5)
    with pytest.raises(InputError, match=r"of \d+ sources were certified"):
        separated_start(graph, sent)


@pytest.mark.slow
def test_the_same_image_twice_is_refused():
    plan = Plan(batch_size=3, mode="eval")
    network = prepare(built(width=80, last=True), plan)
    shown = varied(2)[[0, 1, 1]]
    weights = Weights.of(network)
    update = local_update(network, Batch(shown, torch.tensor([0, 1, 1])), plan, weights)
    with pytest.raises(InputError, match=r"\d of 2 sources were certified, for 3 images"):
        separated_start(graph_of(network, weights, (1, 12, 12), 3), exact(update.tensors))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "algorithm"), [("train", "FedSGD"), ("eval", "FedSGD"), ("train", "FedAvg")])
def test_images_are_read_and_labels_with_them(mode, algorithm):
    shown = varied(4).view(1, 4, 1, 12, 12)
    labels = torch.tensor([[0, 1, 2, 0]])
    seen = scene(built(width=80, last=True), shown, labels, Plan(algorithm, batch_size=4, mode=mode))
    guess = Separation(steps=100)(seen, torch.Generator().manual_seed(0))
    assert guess.labels is not None
    distances = torch.cdist(guess.guesses[0].flatten(1), shown[0].flatten(1))
    order = distances.argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert torch.equal(guess.labels[0], labels[0][order])
    assert guess.certificates[0].startswith("4 images separated; every source has at least ")
    assert "separate readings agree to " in guess.certificates[0]


@pytest.mark.slow
def test_why_nothing_was_read_is_stated():
    shown, labels = varied(8).view(2, 4, 1, 12, 12), torch.tensor([[0, 1, 2, 0]] * 2)
    seen = scene(built(width=80, last=True), shown, labels, Plan(batch_size=4))
    for tensor in seen.views[0].update.tensors.values():
        tensor[0].normal_(generator=torch.Generator().manual_seed(0))
        tensor[1] = torch.nan
    guess = Separation(steps=100)(seen, torch.Generator().manual_seed(0))
    assert guess.unread[0] == "layer 'last.first.0': 0 of 0 sources were certified, for 4 images"
    assert guess.unread[1] == "the update holds values that are not finite"
    assert guess.ended == ("stalled", "nonfinite")


@pytest.mark.slow
def test_sent_statistics_show_the_contrast():
    plan = Plan(batch_size=4, mode="train")
    network = built(width=80, last=True)
    before = {k: t.clone() for k, t in network.named_buffers()}
    shown = varied(4)
    after = built(width=80, last=True).train()
    with torch.no_grad():
        after(shown)
    ready = prepare(network, plan)
    graph = graph_of(ready, Weights.of(ready), (1, 12, 12), 4)
    flat = 0.4 + 0.3 * (shown - 0.4)
    told = with_contrast(graph, flat, stated_variances(graph, ready, before, dict(after.named_buffers())))
    assert torch.allclose(told, shown, atol=1e-3)
    boxed = with_contrast(graph, flat, stated_variances(graph, ready, before, {}))
    assert boxed.quantile(0.01) >= 0
    assert boxed.quantile(0.99) <= 1
    assert max(boxed.max() - 1, -boxed.min()) > -0.05  # the contrast fills the box


def test_the_contrast_is_set_where_only_black_gives_the_first_layer_zeros():
    network = ConvNet(norm="batch").build((1, 12, 12), 3, 0)
    ready, shown = prepare(network, Plan()), varied(2)
    graph = graph_of(ready, Weights.of(network), (1, 12, 12), 2)
    boxed = with_contrast(graph, 0.3 * shown, {})
    assert torch.allclose(boxed / boxed.max(), shown / shown.max(), atol=1e-5)
    assert abs(boxed.quantile(0.998) - 1) < 0.02


@pytest.mark.parametrize("images", [1, 4, 8])
def test_batches_of_a_multilayer_perceptron_are_read_exactly(images):
    shown, labels = varied(images)[None], (torch.arange(images) % 3)[None]
    seen = scene(MLP(hidden=(256, 192)).build((1, 12, 12), 3, 0), shown, labels, Plan(batch_size=images))
    guess = Separation()(seen, torch.Generator().manual_seed(0))
    order = torch.cdist(guess.guesses[0].flatten(1), shown[0].flatten(1)).argmin(1)
    assert torch.allclose(guess.guesses[0], shown[0][order], atol=1e-4)
    assert guess.labels is not None
    assert torch.equal(guess.labels[0], labels[0][order])


def test_weight_decay_is_subtracted_exactly():
    shown, labels = varied(4)[None], torch.tensor([[0, 1, 2, 0]])
    plan = Plan("FedAvg", batch_size=4, weight_decay=0.1, learning_rate=0.2)
    seen = scene(MLP(hidden=(256, 192)).build((1, 12, 12), 3, 0), shown, labels, plan)
    guess = Separation()(seen, torch.Generator().manual_seed(0))
    order = torch.cdist(guess.guesses[0].flatten(1), shown[0].flatten(1)).argmin(1)
    assert torch.allclose(guess.guesses[0], shown[0][order], atol=1e-3)


@pytest.mark.slow
def test_local_steps_are_told_apart_in_train_mode():
    shown, labels = varied(8), torch.tensor([0, 1, 2, 0, 2, 1, 2, 1])
    plan = Plan("FedAvg", batch_size=4, local_images=8, learning_rate=1e-3, momentum=0.5, mode="train")
    network = prepare(built(width=80, last=True), plan)
    weights = Weights.of(network)
    update = local_update(network, Batch(shown, labels), plan, weights)
    graph = graph_of(network, weights, (1, 12, 12), 4)
    begun = separated_start(graph, exact({k: -t for k, t in update.tensors.items()}), batches=2, moved=True)
    assert len(begun.starts) == 2
    found = []
    for start in begun.starts:
        true = torch.cat([graph.after({graph.image: part.double()})[start.node] for part in shown.split(4)])
        order = torch.cdist(*(functional.normalize(t.flatten(1)) for t in (start.value, true))).argmin(1)
        assert torch.equal(start.pull.argmin(1), labels[order])
        found.append(sorted(order.tolist()))
    assert sorted(found) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    guess = Separation()(scene(network, shown[None], labels[None], plan), torch.Generator().manual_seed(0))
    assert guess.certificates[0].startswith("8 images separated and assigned to 2 batches")
    assert guess.ended == ("stalled",)
    assert guess.labels is not None
    assert sorted(guess.labels[0].tolist()) == sorted(labels.tolist())


REFUSED = {
    "several epochs": (Plan(algorithm="FedAvg", batch_size=2, epochs=2), "several epochs"),
    "unequal batches": (Plan(algorithm="FedAvg", local_images=5, batch_size=2), "batches of different sizes"),
    "Poisson": (Plan(batch_size=2, local_images=4, sampling="poisson"), "Poisson"),
    "too many": (Plan(batch_size=130), "130 images cannot be read: at most 80 images"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_plans_that_it_does_not_take(name):
    plan, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        Separation().check(prepare(built(width=80, last=True), plan), (plan,), (1, 12, 12))


def test_a_network_without_rectified_inputs_is_refused():
    plan = Plan(batch_size=2)
    with pytest.raises(InputError, match="2 images cannot be read: no hidden linear layer"):
        Separation().check(prepare(LeNet().build((1, 12, 12), 3, 0), plan), (plan,), (1, 12, 12))


def test_images_without_batches_are_not_assigned_to_any():
    """Random derivatives have no null vectors, so nothing shows which images shared a batch."""
    graph, sent, _, _ = seen_of("train", 2)
    reading = _Reading(graph, sent, next(entrances(graph)), batches=2)
    for seed in range(20):
        delta = torch.randn(4, 128, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with pytest.raises(InputError, match="could not be assigned to batches"):
            reading._balanced(delta)


@pytest.mark.parametrize(("apart", "told"), [(0.01, "agree to 0.01, so errors are below 0.04"), (0.5, "no bound")])
def test_a_bound_beyond_the_values_themselves_is_not_stated(apart, told):
    node = torch.fx.Graph().placeholder("x")
    read = Peeled({}, (), differences={node: apart})
    found = SimpleNamespace(rank=1, evidence="zeros beyond chance")
    begun: Any = SimpleNamespace(sources=found, starts=[None], residual=0.0)
    assert told in _certificate(begun, read)
