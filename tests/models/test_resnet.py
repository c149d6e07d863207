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


@pytest.mark.slow
@pytest.mark.parametrize("depth", THEIRS)
def test_names_and_shapes_are_torchvision_s(depth):
    ours = ResNet(depth).build((3, 64, 64), 1000, seed=0).state_dict()
    theirs = THEIRS[depth]().state_dict()
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in theirs.items()}


@pytest.mark.slow
def test_initial_weights_are_torchvision_s():
    torch.manual_seed(5)
    theirs = THEIRS[18](num_classes=4).state_dict()
    ours = ResNet(18).build((3, 64, 64), 4, seed=5).state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), ("none", (0, 0, 0), (1, 1, 1))],
)
def test_other_normalizations_and_heads_of_more_classes(name, mean, deviation):
    theirs = THEIRS[18](num_classes=9).eval()
    ours = ResNet(18, classes=9, normalization=name).build((3, 64, 64), 4, seed=1).eval()
    ours.load_state_dict(theirs.state_dict())
    moved = (images() - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(deviation).view(-1, 1, 1)
    with torch.no_grad():
        assert torch.allclose(ours(images()), theirs(moved), atol=1e-5)


def test_a_normalization_that_nobody_knows():
    with pytest.raises(InputError, match="no normalization 'cifar'; did you mean 'cifar10'"):
        ResNet(18, normalization="cifar")


def test_the_normalization_is_sent_to_the_server_as_a_buffer_and_not_trained():
    weights = Weights.of(ResNet(18).build((3, 64, 64), 2, seed=0))
    assert torch.equal(weights.buffers["mean"], MEAN)
    assert torch.equal(weights.buffers["deviation"], DEVIATION)
    assert not {"mean", "deviation"} & set(weights.parameters)


@pytest.mark.parametrize("depth", [19, 0, "18"])
def test_unknown_depth(depth):
    with pytest.raises(InputError, match=f"depth is {depth}: choose from 18, 34, 50"):
        ResNet(depth)


# Weights


@pytest.fixture
def file(tmp_path):
    """Save torchvision's network with 1000 classes, as in its weights files."""
    torch.manual_seed(3)
    state = THEIRS[18]().state_dict()
    torch.save(state, tmp_path / "secret-name.pth")
    return tmp_path / "secret-name.pth"


@pytest.mark.slow
def test_a_weights_file_with_its_head_kept_or_drawn_anew(file):
    theirs = torch.load(file, weights_only=True)
    kept = ResNet(18, weights=str(file)).build((3, 64, 64), 1000, seed=0).state_dict()
    assert all(torch.equal(kept[k], t) for k, t in theirs.items())
    new, other = (ResNet(18, weights=str(file)).build((3, 64, 64), 4, seed=s).state_dict() for s in (0, 1))
    body = [k for k in theirs if not k.startswith("fc.")]
    assert all(torch.equal(new[k], theirs[k]) for k in body)
    assert new["fc.weight"].shape == (4, 512)
    assert not torch.equal(new["fc.weight"], other["fc.weight"])
    untrained = ResNet(18).build((3, 64, 64), 4, seed=0).state_dict()
    assert torch.equal(new["fc.weight"], untrained["fc.weight"])


@pytest.mark.slow
def test_gray_images_are_three_equal_channels(file):
    network = ResNet(18, weights=str(file)).build((1, 64, 48), 4, seed=0).eval()
    assert network.conv1.weight.shape == (64, 3, 7, 7)
    color = ResNet(18, weights=str(file)).build((3, 64, 48), 4, seed=0).eval()
    with torch.no_grad():
        assert torch.equal(network(images(1)), color(images(1).expand(-1, 3, -1, -1)))
    with pytest.raises(InputError, match="takes 1 or 3 channels, not 2"):
        ResNet(18, weights=str(file)).build((2, 64, 64), 4, seed=0)


@pytest.mark.slow
def test_a_file_without_counts_of_batches_fits(file, tmp_path):
    old = {k: t for k, t in torch.load(file, weights_only=True).items() if "num_batches" not in k}
    torch.save(old, tmp_path / "old.pth")
    ResNet(18, weights=str(tmp_path / "old.pth")).build((3, 64, 64), 1000, seed=0)


@pytest.mark.slow
def test_weights_of_another_depth_do_not_fit(file):
    with pytest.raises(InputError, match=r"do not fit the model:\n  layer1.2.bn1.bias: in the model, not in the file"):
        ResNet(34, weights=str(file)).build((3, 64, 64), 4, seed=0)


@pytest.mark.slow
def test_a_path_is_in_no_repr(file):
    assert repr(ResNet(18, weights=str(file), classes=4)) == "ResNet(depth=18, weights='a file', classes=4)"
    assert repr(ResNet(18, "IMAGENET1K_V1")) == "ResNet(depth=18, weights='IMAGENET1K_V1')"
    with pytest.raises(InputError, match=r"there is no weights file 'none.pth'"):
        ResNet(18, "none.pth").build((3, 64, 64), 4, seed=0)


@pytest.mark.slow
def test_published_weights_are_downloaded_by_name_with_their_hash_checked(file, monkeypatch):
    asked = []

    def served(url, **options):
        asked.append((url, options))
        return torch.load(file, weights_only=True)

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", served)
    network = ResNet(18, "IMAGENET1K_V1").build((3, 64, 64), 4, seed=0)
    assert torch.equal(network.conv1.weight, served("")["conv1.weight"])
    ((url, options), _) = asked
    assert url.startswith("https://download.pytorch.org/models/resnet18-")
    assert options["check_hash"]
    assert options["weights_only"]

    def fails(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fails)
    with pytest.raises(InputError, match=r"cannot download IMAGENET1K_V1 \(no route\): get the file yourself"):
        ResNet(18, "IMAGENET1K_V1").build((3, 64, 64), 4, seed=0)


def test_volumes_are_refused():
    with pytest.raises(InputError, match=r"ResNet takes images .* use ConvNet, MLP"):
        ResNet(18).build((1, 8, 8, 8), 2, seed=0)
