"""A convolution before a ReLU and average pooling: its inputs and the ReLU's states, alone and in the walk."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn import functional

from medpfl.attacks import DeepRGAP
from medpfl.attacks.deep.backward_walk import peel
from medpfl.attacks.deep.contrast import stated_variances
from medpfl.attacks.deep.graph import exact, graph_of
from medpfl.attacks.deep.pooled_convolution import _Turns
from medpfl.attacks.deep.pooled_path import pooled_path
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.data import Samples
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.models import ConvNet
from tests.attacks.scenes import scene


def begun(network: nn.Module, image: torch.Tensor, label: int = 1):
    """Return the graph, the sent gradients, and the true values of one image in eval mode."""
    graph, sent, true, _ = played(network, image, label, "eval")
    return graph, sent, true


def played(network: nn.Module, image: torch.Tensor, label: int, mode: Literal["train", "eval"]):
    """Return the same in either mode, and the variances that the sent buffers state."""
    plan = Plan(mode=mode)
    ready = prepare(network, plan)
    weights = Weights.of(network)
    update = local_update(ready, Batch(image, torch.tensor([label])), plan, weights, buffers=True)
    graph = graph_of(ready, weights, tuple(image.shape[1:]))
    told = stated_variances(graph, ready, weights.buffers, update.buffers or {})
    return graph, exact(update.tensors), graph.run(image.double(), graph.nodes, graph.fixed), told


def last_path(place: int = 1):
    """Return the path to the last pooling of a plain ConvNet, and the values and the derivative behind it."""
    image = Samples(size=32, channels=1).load().images[place : place + 1]
    graph, sent, true = begun(NETWORKS["plain"](), image)
    pool = pools(graph)[0]
    path = pooled_path(graph, pool, sent)
    assert path is not None
    head = next(t for name, t in sent.items() if name.endswith("bias") and len(t) == 3)
    weight = next(graph.fixed[node] for node, name in graph.parameters.items() if name == "4.weight")
    return path, true[pool], (head @ weight).view(true[pool].shape), true[path.rectifier][0].flatten(1) > 0


def pools(graph):
    """Return the average poolings, the last one first."""
    return [node for node in reversed(graph.nodes) if "avg_pool" in node.name]


def normalized() -> nn.Module:
    """Return a ConvNet whose batch norms have collected statistics."""
    network = ConvNet(norm="batch").build((1, 32, 32), 3, 0)
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_var is not None
            for tensor, low, high in ((layer.weight, 0.5, 1.5), (layer.running_var, 0.5, 2.0), (layer.bias, -0.2, 0.2)):
                tensor.data = low + (high - low) * torch.rand(tensor.shape, generator=generator)
    return network.eval()


NETWORKS = {
    "plain": lambda: ConvNet().build((1, 32, 32), 3, 0),
    "batch norm in eval mode": normalized,
    "two blocks": lambda: ConvNet(depth=2).build((1, 16, 16), 3, 0),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("place", [0, 2])
def test_the_inputs_of_the_last_convolution_are_exact(name, place):
    network = NETWORKS[name]()
    image = Samples(size=16 if name == "two blocks" else 32, channels=1).load().images[place : place + 1]
    graph, sent, true = begun(network, image)
    read = peel(graph, sent)
    _, before = pools(graph)[:2]
    assert before in read.known, read.reasons
    assert (read.known[before] - true[before]).norm() < 1e-4 * true[before].norm()


def test_states_and_inputs_are_found_from_the_true_values_behind_the_pooling():
    path, values, pull, states = last_path()
    found = path.layer.solve(values, pull)
    assert found is not None
    assert torch.equal(found.states, states)
    assert found.residual < 1e-5


def test_the_gradient_of_a_bias_takes_turns_off_the_search_for_states(monkeypatch):
    path, values, pull, _ = last_path()
    turns, states = [], _Turns.states
    monkeypatch.setattr(_Turns, "states", lambda self, z: turns.append(self.layer.summed is None) or states(self, z))
    found, without = path.layer.solve(values, pull), replace(path.layer, summed=None).solve(values, pull)
    assert found is not None
    assert without is not None
    assert turns.count(False) < turns.count(True)
    assert torch.equal(found.states, without.states)


def test_a_sum_that_no_states_explain_changes_nothing():
    path, values, pull, _ = last_path()
    assert path.layer.summed is not None
    noise = torch.randn(len(path.layer.sent), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong = replace(path.layer, summed=10 * path.layer.summed.abs().sum() * noise)
    found, without = wrong.solve(values, pull), replace(path.layer, summed=None).solve(values, pull)
    assert found is not None
    assert without is not None
    assert torch.equal(found.value, without.value)


@pytest.mark.parametrize("place", [0, 2])
def test_the_walk_passes_pooling_behind_batch_norm_in_train_mode(place):
    network = normalized().train()
    image = Samples(size=32, channels=1).load().images[place : place + 1]
    graph, sent, true, told = played(network, image, 1, "train")
    before, normal = pools(graph)[1], max(told, key=graph.nodes.index)
    (convolution,) = graph.sources(normal)
    assert (told[normal] - true[convolution].var((0, 2, 3))).abs().max() < 1e-4 * told[normal].max()
    stated, hidden = (peel(graph, sent, variances=own).known[before] for own in (told, None))
    assert (stated - true[before]).norm() < 1e-4 * true[before].norm()
    assert (hidden / hidden.norm() - true[before] / true[before].norm()).norm() < 1e-4


def test_a_gradient_that_fits_no_states_is_not_read():
    image = Samples(size=32, channels=1).load().images[:1]
    graph, sent, _ = begun(NETWORKS["plain"](), image)
    drawn = torch.randn(sent["2.0.weight"].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    read = peel(graph, {**sent, "2.0.weight": drawn * sent["2.0.weight"].std()})
    assert pools(graph)[1] not in read.known
    assert any("which an average pooling hides, were not found" in reason for reason in read.reasons)


@pytest.mark.parametrize(
    "pool", [nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 2), nn.MaxPool2d(2)], ids=["overlapping", "ragged", "maximum"]
)
def test_other_poolings_are_left_alone(pool):
    torch.manual_seed(0)
    last = nn.LazyLinear(3)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), last)
    network(torch.zeros(1, 1, 8, 8))
    graph, sent, _ = begun(network, torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    node = next(node for node in graph.nodes if "pool" in node.name)
    assert pooled_path(graph, node, sent) is None


@pytest.mark.parametrize("number", [0.0, torch.nan, torch.inf])
def test_statistics_that_cannot_be_do_not_spoil_the_values(number):
    network, image = normalized().train(), Samples(size=32, channels=1).load().images[2:3]
    graph, sent, _, told = played(network, image, 1, "train")
    wrong = {node: torch.full_like(variance, number) for node, variance in told.items()}
    before = pools(graph)[1]
    assert torch.equal(peel(graph, sent, variances=wrong).known[before], peel(graph, sent).known[before])


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_an_image_is_read_through_convnet(norm):
    data = Samples(size=32, channels=1).load()
    network = ConvNet(norm=norm).build((1, 32, 32), len(data.classes), 0)
    plan = Plan()
    DeepRGAP().check(prepare(network, plan), (plan,), (1, 32, 32))
    seen = scene(network, data.images[None, :1], data.labels[None, :1], plan, classes=len(data.classes))
    guess = DeepRGAP()(seen, torch.Generator().manual_seed(0))
    assert functional.mse_loss(guess.guesses[0], data.images[:1]) < 1e-3
    assert guess.labels is not None
    assert torch.equal(guess.labels[0], data.labels[:1])


def test_larger_maps_are_refused_by_count():
    network, plan = ConvNet().build((1, 64, 64), 3, 0), Plan()
    with pytest.raises(InputError, match="288 equations for 256 inputs per channel, too few to find the states"):
        DeepRGAP().check(prepare(network, plan), (plan,), (1, 64, 64))
