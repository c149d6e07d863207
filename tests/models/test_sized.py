"""A network that is too large is refused in about a second, before its memory is allocated."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn

from medpfl import InputError
from medpfl.core.roles import Model
from medpfl.inputs.network import network_of
from medpfl.inputs.parts import model_of
from medpfl.models import MLP, ConvNet, DenseNet121, LeNet, ResNet, UNet, ViT
from medpfl.models.sized import built
from medpfl.models.user import UserModel

SHAPE = (1, 32, 32)
TOO_LARGE = {
    "MLP, one layer": lambda: MLP((10**8,)),
    "MLP, beyond all memory": lambda: MLP((10**9, 10**9)),
    "MLP, a width": lambda: MLP((10**12,)),
    "MLP, layers": lambda: MLP((1,) * 2000),
    "ConvNet": lambda: ConvNet(width=10**9),
    "ConvNet, blocks": lambda: ConvNet(depth=10**12),
    "UNet": lambda: UNet(width=10**8),
    "UNet, levels": lambda: UNet(depth=10**12),
    "ViT": lambda: ViT(mlp=10**9),
    "ViT, layers": lambda: ViT(depth=10**9),
    "ViT, patch": lambda: ViT(patch=10**12),
    "ResNet": lambda: ResNet(classes=10**12),
    "DenseNet": lambda: DenseNet121(channels=10**8),
    "LeNet": lambda: LeNet(classes=10**9),
}


@pytest.mark.parametrize("make", TOO_LARGE.values(), ids=TOO_LARGE)
def test_our_own_models(make):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"the most is|too large"):
        built(make(), SHAPE, 2, 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


FILE = """
import torch
from torch import nn
def wide(num_classes): return nn.Linear(10**9, 10**4)
def wider(num_classes): return nn.Linear(10**12, 10**12)
def widest(num_classes): return nn.Linear(10**30, 10)
def kept(num_classes):
    network = nn.Linear(3, 4)
    network.table = torch.zeros(10**6, 10**6)
    return network
"""


@pytest.mark.parametrize("name", ["wide", "wider", "widest", "kept"])
def test_models_of_a_user(tmp_path, name):
    (tmp_path / "large.py").write_text(FILE)
    with pytest.raises(InputError, match=r"the most is 1,000,000,000|[Oo]verflow"):
        built(UserModel(str(tmp_path / "large.py"), name), SHAPE, 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [MLP(), ConvNet(), UNet(), ViT(), ResNet(), DenseNet121(), LeNet("cpl")], ids=lambda m: type(m).__name__
)
def test_what_is_small_enough_is_built_as_before(model):
    one, other = built(model, SHAPE, 2, 3), model.build(SHAPE, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(("shape", "classes"), [((1, 99999, 99999), 2), ((1, 8), 2), (SHAPE, -5), (SHAPE, 10**12)])
def test_images_and_classes(shape, classes):
    class Unasked(Model):
        def build(self, image_shape, num_classes, seed) -> nn.Module:
            raise AssertionError("it is not built")

    with pytest.raises(InputError, match=r"^(image shape|classes)"):
        built(Unasked(), shape, classes, 0)


def test_a_user_s_function_is_called_once(tmp_path):
    calls = tmp_path / "calls"
    (tmp_path / "counted.py").write_text(
        f"from torch import nn\n"
        f"def make(num_classes):\n"
        f"    with open({str(calls)!r}, 'a') as file:\n"
        f"        file.write('x')\n"
        f"    return nn.Linear(3, num_classes)\n"
    )
    network = built(UserModel(str(tmp_path / "counted.py"), "make"), SHAPE, 2, 0)
    assert network.weight.device.type == "cpu"
    assert calls.read_text() == "x"


LAZY = """
from torch import nn
def make_model(channels, classes, drop=nn.Dropout):
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), drop(), nn.Flatten(), nn.LazyLinear(classes))
    return nn.Sequential(nn.Conv2d(channels, 3, 3), lazy.eval())
class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.LazyLinear(2), nn.LazyLinear(3)
    def forward(self, x):
        return self.used(x.flatten(1))
def too_small():
    return nn.Sequential(nn.LazyConv2d(4, 33), nn.Flatten(), nn.LazyLinear(2))
def wide():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10**8))
"""


def test_lazy_layers_get_their_shapes_and_weights_from_the_seed_alone(tmp_path):
    (tmp_path / "lazy.py").write_text(LAZY)
    make = UserModel(str(tmp_path / "lazy.py"), "make_model")
    before = torch.get_rng_state()
    first = built(make, SHAPE, 5, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again, other = (built(make, SHAPE, 5, seed).state_dict() for seed in (0, 1))
    state = first.state_dict()
    assert state["1.4.weight"].shape == (5, 4 * 28 * 28)
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(state["1.4.weight"], other["1.4.weight"])
    assert [first.training, first[1].training] == [True, False], "modes stay as they were"
    assert not state["1.1.running_mean"].any(), "the first image changes no statistics"
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    shaped = network_of(model_of(network), SHAPE, 2, 0)
    assert shaped[1].weight.shape == (2, 1024)


@pytest.mark.parametrize(("name", "message"), [
    ("Idle", r"does not use its lazy layers idle: remove them"),
    ("too_small", r"get no shape from an image of shape \(1, 1, 32, 32\): .*Kernel size"),
    ("wide", r"the most is 1,000,000,000"),
])  # fmt: skip
def test_lazy_layers_that_get_no_shape(tmp_path, name, message):
    (tmp_path / "lazy.py").write_text(LAZY)
    with pytest.raises(InputError, match=message):
        built(UserModel(str(tmp_path / "lazy.py"), name), SHAPE, 2, 0)
