"""The residual networks are torchvision's, behind a normalization."""

import pytest
import torch
import torchvision
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.types import Weights
from medpfl.models import ResNet

THEIRS = {18: torchvision.models.resnet18, 34: torchvision.models.resnet34, 50: torchvision.models.resnet50}
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)


def images(channels=3):
    return torch.rand(2, channels, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("depth", THEIRS)
def test_names_and_shapes_are_torchvision_s(depth):
    ours = ResNet(depth).build((3, 64, 64), 1000, seed=0).state_dict()
    theirs = THEIRS[depth]().state_dict()
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in theirs.items()}


def test_initial_weights_are_torchvision_s():
    torch.manual_seed(5)
    theirs = THEIRS[18](num_classes=4).state_dict()
    ours = ResNet(18).build((3, 64, 64), 4, seed=5).state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("depth", [18, 50])
def test_outputs_are_torchvision_s_on_normalized_images(depth, training):
    theirs = THEIRS[depth](num_classes=4)
    ours = ResNet(depth).build((3, 64, 64), 4, seed=1)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        expected = theirs.train(training)((images() - MEAN) / DEVIATION)
        found = ours.train(training)(images())
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_gray_images_have_a_first_layer_of_one_channel():
    ours = ResNet(18).build((1, 64, 64), 4, seed=0).eval()
    assert ours.conv1.weight.shape == (64, 1, 7, 7)
    theirs = THEIRS[18](num_classes=4).eval()
    theirs.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.allclose(ours(images(1)), theirs((images(1) - 0.449) / 0.226), atol=1e-5)
    # He's initialization by fan out, as torchvision's of three channels.
    assert ours.conv1.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)


def test_the_normalization_is_sent_to_the_server_as_a_buffer_and_not_trained():
    weights = Weights.of(ResNet(18).build((3, 64, 64), 2, seed=0))
    assert torch.equal(weights.buffers["mean"], MEAN)
    assert torch.equal(weights.buffers["deviation"], DEVIATION)
    assert not {"mean", "deviation"} & set(weights.parameters)


@pytest.mark.parametrize("depth", [19, 0, "18"])
def test_unknown_depth(depth):
    with pytest.raises(InputError, match=f"depth is {depth}: choose from 18, 34, 50"):
        ResNet(depth)
