"""The count of equations: known networks, agreement with the attack, bad input, and order by batch size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet18

from medpfl.attacks import Separation
from medpfl.attacks.deep import capacity as module
from medpfl.attacks.deep.capacity import capacity, capacity_of, traced_graph
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from tests.attacks.residual import Residual, built

BATCHES = (1, 2, 4, 8, 16, 32, 64)


def chain(*layers: nn.Module, features: int = 64) -> nn.Module:
    """Return the layers, a mean over positions and a linear layer."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 3))


def convolutions(act: type[nn.Module] = nn.ReLU, bias: bool = True, norm=None) -> nn.Module:
    """Return three convolutions for images of 8 pixels; `norm` stands behind each, `act` behind the first."""
    parts: list[nn.Module] = []
    for width, out, kind in ((1, 48, act), (48, 64, nn.ReLU), (64, 64, nn.ReLU)):
        stride = 2 if width < 64 else 1
        parts += [nn.Conv2d(width, out, 3, stride, 1, bias=bias), *([norm(out)] if norm else []), kind()]
    return chain(*parts)


@pytest.fixture(scope="module")
def graphs():
    """ResNet-18 by image size and mode."""
    network = resnet18(num_classes=2)
    wanted = ((32, "train"), (64, "train"), (64, "eval"))
    return {(size, mode): traced_graph(network, (3, size, size), mode) for size, mode in wanted}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "mode", "images", "reads", "stops", "limited"),
    [
        (64, "train", 1, "layer1.0.conv1", "operation 'max_pool2d_with_indices'", "other"),
        (64, "train", 2, "layer2.0.conv2", "layer2.0.conv1", "count"),
        (64, "train", 8, "layer2.0.conv2", "layer2.0.conv1", "count"),
        (64, "train", 16, "layer3.0.conv2", "layer3.0.conv1", "count"),
        (64, "eval", 2, "layer1.0.conv1", "operation 'max_pool2d_with_indices'", "other"),
        (64, "eval", 16, "layer2.0.conv2", "layer2.0.conv1", "count"),
        (64, "eval", 32, "layer3.0.conv2", "layer3.0.conv1", "count"),
        (32, "train", 4, "layer1.0.conv1", "operation 'max_pool2d_with_indices'", "other"),
        (32, "train", 8, "layer2.0.conv2", "layer2.0.conv1", "count"),
    ],
)
def test_how_far_a_resnet_is_read(graphs, size, mode, images, reads, stops, limited):
    found = capacity_of(graphs[size, mode], images, mode)
    assert found.applies
    at_one_position = size == 32 and mode == "train"  # derivatives sum to zero there
    assert found.separates == ("layer3.1.conv1" if at_one_position else "layer4.1.conv1")
    assert (found.reads, found.stops, found.limited) == (reads, stops, limited)


@pytest.mark.slow
def test_a_layer_is_counted_in_total_and_by_the_weights_that_meet_a_position(graphs):
    """At a stride of 2, a quarter of the 8 x 8 positions of each image meets the center weight only."""
    layers = {one.layer: one for one in capacity_of(graphs[64, "train"], 16).layers}
    narrow = layers["layer3.0.conv1"]
    assert (narrow.equations, narrow.unknowns, narrow.read) == (9 * 256, 16 * 64, False)
    assert narrow.why.startswith("256 equations for the 256 inputs per channel that meet the fewest weights")
    assert narrow.why.endswith("batch norm in train mode needs 282")
    assert layers["layer3.1.conv1"].read
    assert "layer4.1.conv2" not in layers  # it comes after the place where images separate


@pytest.mark.slow
def test_a_single_value_and_too_many_images_are_refused(graphs):
    alone = capacity_of(graphs[32, "train"], 1)
    assert (alone.applies, alone.reads, alone.layers) == (False, None, ())
    assert "single value" in alone.why
    crowd = capacity_of(graphs[64, "eval"], 257, "eval")
    assert (crowd.applies, crowd.most, crowd.limited) == (False, 256, "count")
    assert "at most 256 images" in crowd.why


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (convolutions(bias=False), "no bias follows"),
        (convolutions(bias=False, norm=lambda width: nn.GroupNorm(4, width)), "no bias follows"),
        (chain(nn.Conv2d(1, 64, 3), nn.GELU()), "no 3 x 3 convolution"),
        (nn.Conv2d(1, 2, 3, padding=1), "a class for every pixel"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Tanh()), "does not end in a linear layer"),
    ],
)
def test_why_images_cannot_be_separated(network, why):
    found = capacity(network, (1, 8, 8), 2, "eval")
    assert (found.separates, found.most, found.reads, found.limited) == (None, 0, None, "other")
    assert why in found.why


@pytest.mark.parametrize(
    ("network", "mode", "reads", "stops"),
    [
        (convolutions(), "train", "0", ""),
        (convolutions(nn.Tanh), "train", "0", ""),
        (convolutions(nn.GELU), "train", "2", "operation 'gelu'"),
        (convolutions(norm=nn.BatchNorm2d), "train", "3", "0"),
        (convolutions(norm=nn.BatchNorm2d), "eval", "0", ""),
        (convolutions(bias=False, norm=nn.BatchNorm2d), "train", "3", "0"),
        (convolutions(norm=lambda width: nn.GroupNorm(4, width)), "train", "6", "4"),
    ],
)
def test_what_stops_a_chain(network, mode, reads, stops):
    found = capacity(network, (1, 8, 8), 2, mode)
    assert (found.reads, found.stops) == (reads, stops)
    assert (found.why == "") == (stops == "") == (found.limited == "")


def test_bad_input():
    with pytest.raises(InputError, match="at least one image, not 0"):
        capacity(convolutions(), (1, 8, 8), 0)
    with pytest.raises(InputError, match="draws at random"):
        capacity(chain(nn.Conv2d(1, 64, 3), nn.Dropout()), (1, 8, 8), 2)

    class ByContent(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)) if x.sum() > 0 else x

    with pytest.raises(InputError, match="cannot be listed"):
        capacity(ByContent(64, 2), (1, 8, 8), 2)


def depth(network: nn.Module, found: module.Capacity) -> int:
    """Return how many layers are before the earliest one read: infinitely many if none is, -1 for the images."""
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    return len(names) if found.reads is None else names.index(found.reads) if found.stops else -1


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(st.integers(8, 96), st.sampled_from(["train", "eval"]), st.booleans(), st.integers(0, 1000))
def test_a_larger_batch_never_reads_further(width, mode, pooled, seed):
    torch.manual_seed(seed)
    network = Residual(width=width, last=True, pool=nn.AvgPool2d(1) if pooled else None)
    graph = traced_graph(network, (1, 12, 12), mode)
    found = [capacity_of(graph, images, mode) for images in BATCHES]
    depths = [depth(network, one) for one in found]
    assert depths == sorted(depths)
    assert len({one.most for one in found}) == 1
    assert all(one.applies == (one.images <= one.most) for one in found)


@pytest.mark.parametrize("images", [1, 4, 80, 81, 200])
def test_what_separates_by_count_passes_the_attack_s_own_check(images):
    network = built(width=80, last=True)
    counted = capacity(network, (1, 12, 12), images, "eval")
    assert counted.applies == (images <= 80)
    if counted.applies:
        Separation().check(network, (Plan(batch_size=images, mode="eval"),), (1, 12, 12))
