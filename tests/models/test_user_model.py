"""A user's own model: by file and by module, with arguments filled in and failures reported."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.models.user import UserModel

FILE = """
from __future__ import annotations
import dataclasses
import torch
from torch import nn
from neighbor import WIDTH

def make_model(num_classes, in_channels=1):
    return nn.Sequential(nn.Conv2d(in_channels, WIDTH, 3), nn.Flatten(), nn.LazyLinear(num_classes))

class Net(nn.Module):
    def __init__(self, width, depth=1, *, n_classes, in_channels, img_size, bias=True):
        super().__init__()
        self.settings = (width, depth, n_classes, in_channels, img_size, bias)
        self.fc = nn.Linear(in_channels * img_size**2, n_classes, bias)
    def forward(self, x):
        return self.fc(x.flatten(1))

@dataclasses.dataclass
class Settings:
    width: int = 3

def from_settings():
    return nn.Linear(Settings().width, 2)

def fixed(out_channels=7, size=None):
    return nn.Linear(out_channels, 2)

def anything(**keywords):
    return nn.Linear(keywords["width"], 2)

def no_module():
    return {"weight": 1}

def breaks(width=1):
    raise KeyError("nothing " + str(width))

def adds(width):
    return width + "1"

class Several(nn.Linear):
    def __init__(self, kind):
        super().__init__(4, 2)
        self.kind = kind
    def forward(self, x):
        logits = super().forward(x)
        several = {"tuple": (logits, x), "list": [logits, x], "logits": {"aux": x, "logits": logits}}
        return (several | {"out": {"out": logits}, "other": {"else": logits}})[self.kind]

def of_axes_or_three(spatial_dims=3):
    return nn.Linear(spatial_dims, 2)


def of_axes(spatial_dims):
    return nn.Linear(spatial_dims, 2)

def _private():
    pass

number = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_net.py"
    path.write_text(FILE)
    (tmp_path / "neighbor.py").write_text("WIDTH = 4\n")
    yield path
    for name in ("medpfl_user_my_net", "neighbor"):
        sys.modules.pop(name, None)


def build(text, shape=(2, 12, 12), classes=5, seed=0):
    return UserModel.parse(str(text)).build(shape, classes, seed)


def test_a_function_in_a_file(file):
    network = build(f"{file}:make_model")
    assert network[0].weight.shape == (4, 1, 3, 3)  # a default of its own is kept
    assert network[2].out_features == 5
    assert build(f"{file}:make_model(9)")[2].out_features == 9
    assert build(f"{file}:make_model(num_classes=3, in_channels=2)")[0].in_channels == 2
    assert str(file.parent) not in sys.path


def test_a_class_with_arguments_and_the_data_s_filled_in_by_name(file):
    assert build(f"{file}:Net(8)").settings == (8, 1, 5, 2, 12, True)
    assert build(f"{file}:Net(width=8, depth=2, n_classes=3, bias=False)").settings == (8, 2, 3, 2, 12, False)
    assert build(f"{file}:Net(8)", (2, 10, 12)).settings[4] == 12
    with pytest.raises(InputError, match="model 'Net': missing a required argument: 'width'"):
        build(f"{file}:Net")


def test_nothing_is_filled_in_that_has_a_default(file):
    assert build(f"{file}:fixed").in_features == 7
    assert build(f"{file}:anything(width=6)").in_features == 6


def test_the_number_of_axes_is_filled_in(file):
    """It is filled in even over a default: MONAI's ViT expects volumes otherwise."""
    assert build(f"{file}:of_axes_or_three", (1, 8, 8)).in_features == 2
    assert build(f"{file}:of_axes_or_three(spatial_dims=4)", (1, 8, 8)).in_features == 4
    assert build(f"{file}:of_axes", (1, 8, 8)).in_features == 2
    assert build(f"{file}:of_axes", (1, 8, 8, 8)).in_features == 3


@pytest.mark.parametrize("kind", ["tuple", "list", "logits", "out"])
def test_of_several_outputs_the_logits_count(file, kind):
    network, x = build(f"{file}:Several('{kind}')"), torch.ones(3, 4)
    assert torch.equal(network(x), nn.functional.linear(x, network.weight, network.bias))
    assert set(dict(network.named_parameters())) == {"weight", "bias"}  # as without us, so weights files fit
    plan = Plan(batch_size=3)
    update = local_update(prepare(network, plan), Batch(x, torch.tensor([0, 1, 1])), plan, Weights.of(network))
    assert update.norm() > 0


def test_outputs_of_unknown_names_are_left_to_the_check(file):
    assert isinstance(build(f"{file}:Several('other')")(torch.ones(3, 4)), dict)


def test_dataclasses_in_the_file_find_their_module(file):
    assert build(f"{file}:from_settings").in_features == 3


def test_a_module_path():
    network = build("torch.nn:Linear(4, 3, bias=False)")
    assert isinstance(network, nn.Linear)
    assert network.bias is None
    assert build("torchvision.models:resnet18(num_classes=3)").fc.out_features == 3


def test_the_seed_makes_the_weights(file):
    before = torch.random.get_rng_state()
    one, same, other = (Weights.of(build(f"{file}:Net(8)", seed=s)).parameters["fc.weight"] for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_what_is_written_holds_no_path(file):
    model = UserModel.parse(f"{file}:Net(width=8)")
    assert (model.place, model.call) == (str(file), "Net(width=8)")
    assert repr(model) == "UserModel(call='Net(width=8)')"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("make_mode", "has no function or class 'make_mode'; did you mean 'make_model'"),
        ("number", "has no function or class 'number'"),
        ("make_model(num_clases=3)", "no argument 'num_clases'; did you mean 'num_classes'"),
        ("make_model(1, 2, 3)", "too many positional arguments"),
        ("make_model(", "after the colon write a name, or a name with literal arguments"),
        ("make_model(width)", "literal arguments"),
        ("make_model({[1]: 2})", "literal arguments"),
        ("make_model(open('x'))", "literal arguments"),
        ("Net.forward()", "literal arguments"),
        ("", "after the colon write a name"),
        ("no_module", "model 'no_module' returned a dict, not a torch.nn.Module"),
        ("breaks(width=2)", "model 'breaks' failed: KeyError: 'nothing 2'"),
        ("adds(2)", "model 'adds': unsupported operand"),
    ],
)
def test_wrong_calls(file, call, message):
    with pytest.raises(InputError, match=message):
        build(f"{file}:{call}")


def test_private_names_are_not_proposed(file):
    with pytest.raises(InputError) as error:
        build(f"{file}:_privat")
    assert "_private" not in str(error.value).partition(";")[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none.py:make", "there is no model file 'none.py'"),
        ("no_such_package.net:make", "importing 'no_such_package.net' failed: there is no module 'no_such_package'"),
        ("torch.nn:Linea", "has no function or class 'Linea'; did you mean 'Linear'"),
        (":make", "importing '' failed"),
        ("net.py", "after the colon write a name"),
    ],
)
def test_wrong_places(text, message):
    with pytest.raises(InputError, match=message):
        build(text)


@pytest.mark.parametrize(("code", "kind"), [("1 +", "SyntaxError"), ("import nowhere_at_all", "ModuleNotFoundError")])
def test_files_that_do_not_import(tmp_path, code, kind):
    (tmp_path / "broken_net.py").write_text(code)
    before = list(sys.path)
    with pytest.raises(InputError, match=f"importing .*broken_net.py' failed: {kind}"):
        build(f"{tmp_path}/broken_net.py:make")
    assert sys.path == before


def test_module_paths_are_looked_up_where_python_looks(tmp_path, monkeypatch):
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "net.py").write_text(
        "from torch.nn import Linear\ndef make():\n    return Linear(3, 2)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build("own_package.net:make").in_features == 3
