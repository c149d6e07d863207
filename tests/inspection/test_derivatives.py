"""Models that attacks cannot differentiate: the layer is named, and no result is silently wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from medpfl import InputError, Plan
from medpfl.inspection.derivatives import check_derivatives
from medpfl.models import LeNet, ResNet
from tests.auditing.audit_cases import Answers, some_images, tiny


class Old(torch.autograd.Function):
    """A function written before `torch.func`."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Sine(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)


class Once(Sine):
    """A function with a correct first derivative; under `torch.func`, its second silently loses a path."""

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class NoSecond(Sine):
    """A function that refuses a second derivative, as some torch kernels do."""

    @staticmethod
    def backward(ctx, g):
        return Refusing.apply(g, *ctx.saved_tensors)


class Refusing(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(g, x):
        return g * x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("derivative for sine_backward is not implemented")


class Does(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def writes(x):
    y = x.sigmoid()
    z = y * y
    y += 1
    return z


def into_zeros(x):
    out = torch.zeros(x.shape[1:])
    out += x[0]
    return out[None]


def grid(x):
    eye = torch.eye(2, 3).repeat(len(x), 1, 1)
    return F.grid_sample(x, F.affine_grid(eye, x.shape, align_corners=False), align_corners=False)


def around(function, layer=None) -> nn.Module:
    """Return a convolution, an inner block with the function, and a linear layer."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Identity(), layer or Does(function))
    return nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), inner, nn.Flatten(), nn.Linear(256, 2))


def check(network, batch=1, mode="train"):
    images = torch.rand(batch, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return check_derivatives(network, images, 2, Plan(batch_size=batch, mode=mode))


class Row(nn.Module):
    """A layer applied to the image as a sequence of rows."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        out = self.layer(x[:, 0])
        return (out[0] if isinstance(out, tuple) else out).flatten(1)


@pytest.mark.parametrize(
    "network",
    [
        LeNet("dlg").build((1, 16, 16), 2, 0),
        LeNet("cpl").build((1, 16, 16), 2, 0),  # so sure that with a class for a label its update would vanish
        around(grid),
        around(torch.relu),
        around(lambda x: F.max_pool2d(x, 3, 1, 1)),
        around(None, nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(inplace=True), nn.Dropout(0.5))),
        nn.Sequential(Row(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)), nn.Linear(256, 2)),
        nn.Sequential(Row(nn.LSTM(16, 4, batch_first=True)), nn.Linear(64, 2)),
    ],
    ids=lambda network: type(network[0]).__name__,
)
def test_networks_that_are_right(network):
    assert check(network, batch=2) is None


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_residual_network_is_right(mode):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    network = ResNet(18).build((3, 64, 64), 2, 0)
    assert check_derivatives(network, images, 2, Plan(batch_size=2, mode=mode)) is None


COMPUTED, TWICE = "the update of this model cannot be computed", "cannot be differentiated by the images"


@pytest.mark.parametrize(
    ("function", "message", "reason"),
    [
        (Old.apply, COMPUTED, "setup_context"),
        (writes, COMPUTED, "modified by an inplace operation"),
        (NoSecond.apply, TWICE, "derivative for sine_backward is not implemented"),
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
def test_a_layer_that_cannot_be_differentiated_is_named(function, message, reason):
    with pytest.raises(InputError, match=rf"{message}.*, because of layer '1\.1' \(Does\): .*{reason}"):
        check(around(function))


def test_what_cannot_be_evaluated_together_may_be_alone():
    assert check(around(lambda x: x if x.sum() > 0 else -x)) is None
    assert check(around(into_zeros)) is None


@pytest.mark.parametrize(
    "function", [Once.apply, lambda x: x.detach().sin(), lambda x: x * x.detach().square().sum().sqrt()]
)
def test_a_layer_whose_second_derivative_is_silently_wrong_is_named(function):
    assert check(around(function)) == "layer '1.1' (Does)"


@pytest.mark.parametrize("rounded", [lambda x: x.float(), lambda x: x.float().type_as(x)])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_model_that_rounds_to_float32_is_not_called_wrong(rounded, place):
    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Sigmoid(), nn.Linear(8, 2))

        def forward(self, x):
            return self.inner(rounded(x)) if place == "first" else rounded(self.inner(x))

    assert check(Rounds()) is None


def test_the_model_s_own_forward_is_named_if_no_layer_is_at_fault():
    class Own(nn.Sequential):
        def forward(self, x):
            return super().forward(Old.apply(x))

    with pytest.raises(InputError, match="because of the forward method of Own: "):
        check(Own(nn.Flatten(), nn.Linear(256, 2)))


def test_a_model_without_gradient_is_not_wrong():
    assert check(around(lambda x: x * 0)) is None


def test_the_network_is_left_as_it_was():
    network = around(None, nn.BatchNorm2d(1))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    check(network, batch=2)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_an_audit_says_it_before_any_work(monkeypatch):
    monkeypatch.setattr("medpfl.auditing.player.Player.__call__", lambda *_: pytest.fail("work was done"))
    with pytest.raises(InputError, match=r"because of layer '1\.1' \(Does\)"):
        tiny(some_images(6), model=around(NoSecond.apply))


@pytest.mark.slow
def test_an_audit_of_a_wrong_derivative_is_flagged(tmp_path):
    few = {"images": 1, "attacks": ["iDLG(steps=1)"]}
    report = tiny(some_images(6), model=around(Once.apply), out=tmp_path / "runs" / "a", **few)
    assert all("wrong-derivative" in row.flags for row in report.rows)
    assert all("wrong-derivative" in cell.flags for cell in report.summary)
    note = "layer '1.1' (Does) has a second derivative that does not match what it computes."
    assert note in report.settings.notes
    assert note.replace("'", "&#39;") in (tmp_path / "runs" / "a" / "share/report.html").read_text()
    assert "wrong-derivative" not in tiny(some_images(6), model=around(torch.sin), **few).rows[0].flags


# --- updates that are bad ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_flagged_whatever_the_attack_says():
    report = tiny(
        some_images(6), model=around(lambda x: x + (x * 0).sqrt()), images=2, attacks=[Answers(), "iDLG(steps=1)"]
    )
    assert all("nonfinite" in row.flags for row in report.rows if not row.control)
    assert {cell.nonfinite for cell in report.summary} == {1.0}


@pytest.mark.slow
def test_an_update_that_a_defense_leaves_nothing_of_is_flagged():
    from medpfl import Defense

    class Nothing(Defense):
        def __repr__(self):
            return "Nothing()"

        def update(self, value, state, generator):
            return value.replace({k: t * 0 for k, t in value.tensors.items()}), state

    bare, emptied = tiny(some_images(6), defenses=[Nothing()], images=2, attacks=["iDLG(steps=1)"]).summary
    assert (bare.zero_gradient, emptied.zero_gradient, emptied.images) == (0.0, 1.0, 0)
    assert emptied.verdict == "inconclusive"
