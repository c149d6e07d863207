"""ConvNet, MLP, DenseNet121 and ViT: their layers, and the settings they refuse."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from medpfl import models
from medpfl.core.errors import InputError
from medpfl.core.spec import build, registry
from medpfl.models import MLP, ConvNet, DenseNet121, LeNet, ViT

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


def kinds(network: nn.Module) -> list[str]:
    return [type(m).__name__ for m in network.modules() if not list(m.children())]


@pytest.mark.slow
def test_densenet_is_torchvision_s_on_normalized_images():
    theirs = torchvision.models.densenet121(num_classes=4).eval()
    ours = DenseNet121().build((3, 64, 48), 4, seed=0).eval()
    assert {k: t.shape for k, t in ours.state_dict().items()} == {k: t.shape for k, t in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images(3, 64, 48)), theirs((images(3, 64, 48) - MEAN) / DEVIATION))
    torch.manual_seed(5)
    drawn = torchvision.models.densenet121(num_classes=4).state_dict()
    assert all(torch.equal(t, drawn[k]) for k, t in DenseNet121().build((3, 64, 64), 4, seed=5).state_dict().items())


def test_vit_is_torchvision_s_on_normalized_square_images():
    theirs = torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=4).eval()
    nn.init.normal_(theirs.heads.head.weight)
    ours = ViT(8, 2, 24, 2, 48).build((3, 32, 32), 4, seed=0).eval()
    assert {k: t.shape for k, t in ours.state_dict().items()} == {k: t.shape for k, t in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images(3, 32, 32)), theirs((images(3, 32, 32) - MEAN) / DEVIATION))


@pytest.mark.parametrize(
    ("shape", "patch", "tokens"), [((1, 24, 40), 8, 16), ((3, 28, 28), 4, 50), ((1, 32, 32), 32, 2)]
)
def test_vit_of_any_size(shape, patch, tokens):
    network = ViT(patch, 1, 12, 2).build(shape, 3, seed=0).eval()
    assert network.encoder.pos_embedding.shape == (1, tokens, 12)
    assert network(images(*shape)).shape == (2, 3)
    # Where a patch is counts: the same patches in another order are another image.
    if tokens > 2:
        turned = images(*shape).roll(patch, -1)
        assert (network(images(*shape)) - network(turned)).abs().max() > 1e-6


def test_convnet_s_blocks():
    network = ConvNet(6, 2, "batch", "tanh", 0.1).build((3, 16, 20), 5, seed=0)
    block = ["Conv2d", "BatchNorm2d", "Tanh", "AvgPool2d"]
    assert kinds(network) == [*block, *block, "Flatten", "Dropout", "Linear"]
    assert network[-1].in_features == 6 * 4 * 5
    assert "InstanceNorm3d" in kinds(ConvNet(4, 1, "instance").build((1, 8, 8, 8), 2, seed=0))
    group = ConvNet(12, 1, "group").build((1, 8, 8), 2, seed=0)[0][1]
    assert (group.num_groups, group.num_channels) == (4, 12)
    assert kinds(ConvNet(4, 1).build((1, 8, 8), 2, seed=0)) == ["Conv2d", "ReLU", "AvgPool2d", "Flatten", "Linear"]


def test_mlp_s_layers():
    network = MLP((7, 5), "gelu", 0.2).build((3, 4, 6), 2, seed=0)
    assert kinds(network) == ["Flatten", "Linear", "GELU", "Dropout", "Linear", "GELU", "Dropout", "Linear"]
    assert [m.out_features for m in network if isinstance(m, nn.Linear)] == [7, 5, 2]
    assert network[1].in_features == 72
    assert kinds(MLP([]).build((1, 4, 4, 4), 2, seed=0)) == ["Flatten", "Linear"]


def test_the_first_layer_of_an_mlp_gives_an_image_away():
    """Proposition 3.1 in Geiping et al. 2020: the weights' gradient divided by the bias's is the input."""
    network, image = MLP((9,), "sigmoid").build((1, 6, 6), 2, seed=0), images(1, 6, 6)[:1]
    nn.functional.cross_entropy(network(image), torch.tensor([1])).backward()
    ratio = network[1].weight.grad / network[1].bias.grad[:, None]
    torch.testing.assert_close(ratio[0].view(1, 1, 6, 6), image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("ConvNet(norm='layer')", None, "there is no norm 'layer'"),
        ("ConvNet(activation='swish')", None, "there is no activation 'swish'"),
        ("ConvNet(width=0)", None, "width is 0"),
        ("ConvNet(depth=2.5)", None, "depth is 2.5"),
        ("ConvNet(dropout=1.0)", None, "dropout is 1.0"),
        ("ConvNet(depth=5)", (1, 28, 28), "too small for 5 blocks"),
        ("MLP(hidden=5)", None, r"hidden is 5: it must be a tuple in which each element is a whole number"),
        ("MLP(hidden=(5, -1))", None, "hidden is -1"),
        ("ViT(width=10, heads=3)", None, "a multiple of heads, 3"),
        ("ViT(patch=5)", (1, 32, 32), "32 x 32 cannot be cut into patches of 5"),
        ("ViT()", (1, 8, 8, 8), "ViT takes images"),
        ("DenseNet121()", (1, 28, 28), r"\[28, 28\] must be 32 pixels or more"),
        ("DenseNet121()", (1, 32, 32, 32), "DenseNet121 takes images"),
        ("LeNet()", (1, 8, 8, 8), "LeNet takes images"),
    ],
)
def test_what_is_refused(spec, shape, message):
    with pytest.raises(InputError, match=message):
        build(spec, registry(models), "model").build(shape, 2, seed=0)


@pytest.mark.parametrize("model", [ConvNet(4, 1, "group"), MLP((4, 3)), DenseNet121(), ViT(4), LeNet("cpl")], ids=repr)
def test_the_repr_builds_it_again(model):
    assert build(repr(model), registry(models), "model") == model
