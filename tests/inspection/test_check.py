"""``check-model`` on networks with known leaks, layers and faults."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from medpfl import InputError, Victims, attacks, audit, cli
from medpfl.inputs.parts import GivenModel
from medpfl.inspection import check as module
from medpfl.inspection.check import check_model
from medpfl.reporting.model_page import model_page
from tests.attacks.residual import Residual

SHAPE = (1, 12, 12)


class Odd(nn.Module):
    """A network with tied, frozen and unused parameters, attention, dropout, norms and two outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(144, 32), nn.Linear(144, 32)
        self.again.weight = self.first.weight
        self.fixed = nn.Linear(32, 32).requires_grad_(False)
        self.unused, self.other = nn.Linear(3, 3), nn.Linear(32, 5)
        self.norm, self.drop = nn.GroupNorm(4, 32), nn.Dropout(0.2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.plain, self.head = nn.Linear(32, 16, bias=False), nn.Linear(16, 3)

    def forward(self, x):
        x = x.flatten(1)
        hidden = self.fixed((self.first(x) + self.again(1 - x)).tanh())
        tokens = self.drop(self.norm(hidden)).view(-1, 4, 8)
        hidden = self.attention(tokens, tokens, tokens)[0].flatten(1)
        return self.head(self.plain(hidden).tanh()), self.other(hidden)


def odd():
    torch.manual_seed(0)
    network = Odd()
    network.register_forward_hook(lambda _, __, out: out[0])
    return network


@pytest.fixture
def only(monkeypatch):
    """Try only the attacks of these names: to try all takes most of a check's time."""

    def call(*names):
        monkeypatch.setattr(module, "registry", lambda package: {name: getattr(package, name) for name in names})

    return call


@pytest.fixture
def no_attacks(only):
    only()


def by_layer(check):
    return {found["layer"]: (found["read"], found["pixels_themselves"]) for found in check.linear}


def text(check):
    return "\n".join(line for heading, lines in model_page(check.to_dict()) for line in [heading, *lines])


def test_the_first_layer_of_an_mlp_holds_the_image(no_attacks):
    check = check_model("MLP((16,), 'sigmoid')", SHAPE, 3)
    assert by_layer(check) == {"1": ("exactly", True), "3": ("exactly", False)}
    assert check.linear[0] == {"layer": "1", "inputs": 144, "pixels": 144, "read": "exactly", "pixels_themselves": True}
    assert "the image itself" in text(check)


def test_a_normalized_image_is_the_image_and_another_input_is_not(no_attacks):
    class Scaled(nn.Module):
        def __init__(self, mix):
            super().__init__()
            self.last, self.mix = nn.Linear(144, 2), mix

        def forward(self, x):
            return self.last(x.flatten(1)[:, torch.arange(144).roll(self.mix)] * 3 - 1)

    assert check_model(Scaled(0), SHAPE).linear[0]["pixels_themselves"]
    assert not check_model(Scaled(5), SHAPE).linear[0]["pixels_themselves"]


@pytest.mark.slow
def test_labels_are_read_from_the_last_layer(no_attacks):
    check = check_model("LeNet('idlg')", SHAPE, 3)
    assert check.labels["1"] == {"layer": "7.weight", "bias": True, "right": 3, "all": 3}
    assert check.labels["8"]["right"] >= 12
    assert check.labels["8"]["all"] == 16


@pytest.mark.slow
def test_a_model_without_a_last_layer_says_why_no_label_is_read(only):
    only("iDLG", "DLG")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Tanh(), nn.Unflatten(1, (2, 4)))
    network.register_forward_hook(lambda _, __, out: out.mean(2))
    check = check_model(network, SHAPE)
    assert "no last layer with 2 outputs" in check.labels["1"]["why"]
    assert "no last layer with 2 outputs" in check.attacks["iDLG"]
    assert check.attacks["DLG"] == ""
    assert "do not apply: " in text(check)


@pytest.mark.slow
def test_what_a_network_is_made_of(no_attacks):
    check = check_model(odd(), SHAPE, 3)
    facts = check.facts
    assert facts["frozen"] == ["fixed.weight", "fixed.bias"]
    assert facts["without_gradient"] == ["unused.weight", "unused.bias", "other.weight", "other.bias"]
    assert facts["tied"] == [["first.weight", "again.weight"]]
    assert facts["layers"] == {"group norm": 1, "dropout": 1}
    assert facts["attention"] == 1
    assert facts["returns"] == 2
    assert facts["parameters"] - facts["trained"] == 32 * 33
    assert by_layer(check)["plain"] == ("up to a factor", False)
    assert by_layer(check)["head"] == ("exactly", False)
    assert by_layer(check)["first"][0] == "not"  # the sum of two images' gradients
    assert {"other", "unused", "fixed"}.isdisjoint(by_layer(check))
    assert check.derivatives == {"twice": "", "together": "", "wrong": ""}


@pytest.mark.slow
def test_tokens_are_read_as_a_sum(no_attacks):
    check = check_model("ViT(4, 1, 12, 3)", SHAPE, 3)
    assert by_layer(check)["heads.head"] == ("exactly", False)
    assert by_layer(check)["encoder.layers.encoder_layer_0.mlp.0"] == ("as a sum", False)
    assert check.facts["attention"] == 1
    assert check.facts["layers"]["layer norm"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "sent"), [("train", True), ("eval", False)])
def test_batch_norm_statistics(mode, sent, no_attacks):
    check = check_model("ConvNet(4, 2, 'batch')", SHAPE, mode=mode)
    assert check.statistics == {"layers": 2, "numbers": 16, "sent": sent}
    assert ("(16 values)" in text(check)) is sent


@pytest.mark.slow
def test_a_model_that_takes_no_single_image_in_train_mode(only):
    only()
    check = check_model("ConvNet(4, 2, 'batch')", (1, 4, 4))
    deep = check_model("ConvNet(4, 2, 'batch')", (1, 4, 4), mode="eval")
    assert (check.fewest, deep.fewest) == (1, 1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 2))
    only("APRIL", "DeepRGAP", "RGAP", "iDLG")
    check = check_model(network, SHAPE)
    assert check.fewest == 2
    assert set(check.labels) == {"2", "8"}
    assert by_layer(check) == {"1": ("as a sum", False), "4": ("as a sum", False)}
    assert {name for name, why in check.attacks.items() if why} >= {"APRIL", "DeepRGAP", "RGAP"}, "one image at a time"
    assert not check.attacks["iDLG"]
    assert "cannot take a single image" in text(check)
    only()
    assert check_model(network, SHAPE, mode="eval").fewest == 1


def test_a_model_that_cannot_be_differentiated_twice():
    class Once(torch.autograd.Function):
        generate_vmap_rule = False

        @staticmethod
        def forward(x):
            return x.sin()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])

        @staticmethod
        def backward(ctx, slope):
            return torch.from_numpy(ctx.saved_tensors[0].detach().numpy()) * slope

    class Layer(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    torch.manual_seed(0)
    check_fails = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), Layer(), nn.Linear(8, 2))
    with pytest.raises(InputError, match=r"layer '2' \(Layer\)"):
        check_model(check_fails, SHAPE)


@pytest.mark.slow
def test_what_takes_time_is_timed(no_attacks):
    check = check_model("LeNet('idlg')", SHAPE)
    seconds = check.seconds
    assert 0 < seconds["forward"] < seconds["gradient"] < seconds["second"]
    assert seconds["together"] > 0
    assert seconds["audits_together"] is True
    assert check.facts["slowest"][0] in ("Conv2d", "Linear", "Sigmoid")
    assert 0 < check.facts["slowest"][1] <= 1


def test_a_second_derivative_that_is_wrong_is_named(no_attacks):
    class Detached(nn.Module):
        def forward(self, x):
            return x * x.detach().sigmoid()

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), Detached(), nn.Linear(8, 2))
    check = check_model(network, SHAPE)
    assert "'2'" in check.derivatives["wrong"]
    assert "wrong: " in text(check)


@pytest.mark.slow
def test_every_registered_attack_is_tried_and_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(200, 2))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    check = check_model(GivenModel(network, "mine"), SHAPE)
    assert list(check.attacks) == attacks.__all__
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())


FILE = """
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Sigmoid(), nn.Linear(6, num_classes))
"""


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys, no_attacks):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    assert cli.main(["check-model", f"{path}:make", "--size", "8", "--classes", "3"]) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 inferred from the gradient of the last layer's bias, '3'" in " ".join(shown.split())
    assert str(tmp_path) not in shown
    assert cli.main(["check-model", f"{path}:make", "--image-shape", "1x8x8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image_shape"] == [1, 8, 8]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MLP", "--image-shape", "1x"], "--image-shape is 1x"),
        (["MLP", "--image-shape", "1,8"], "give (C, H, W), or (C, D, H, W) for volumes, all above 0"),
        (["MLP", "--size", "0"], "--size is 0: it must be a whole number, at least 1"),
        (["MLQ"], "did you mean 'MLP'?"),
        (["ResNet(18)", "--image-shape", "1,8,8,8"], "ResNet takes images (C, H, W)"),
        (["MLP(classes=1)"], "the model has 1 outputs"),
        (["MLP", "--classes", "-5"], "classes is -5: it must be a whole number, at least 1"),
        (["MLP", "--classes", "1000000000000"], "classes is 1000000000000"),
        (["MLP", "--image-shape", "1,99999,99999"], "an image has 9,999,800,001 elements, the most is"),
        (["MLP", "--image-shape", "1,-8,-8"], "all above 0"),
        (["MLP", "--size", "99999"], "--size is 99999: it must be a whole number, at least 1 and at most 4096"),
        (["MLP", "--channels", "1000000000000"], "--channels is 1000000000000: it must be"),
        (["MLP((1000000000000,))"], "hidden is 1000000000000: it must be at most 1000000"),
        (["MLP((99999999,))"], "hidden is 99999999: it must be at most 1000000"),
        (["UNet(width=1000000)"], "parameters, the most is"),
        (["ViT(width=960000)"], "parameters, the most is"),
        (["ResNet(classes=1000000000000)"], "classes is 1000000000000: it must be at most 1000000"),
        (["net (2).py:make"], "there is no model file 'net (2).py'"),
        (["net (2).py"], "add the function that makes it, as in net (2).py:make_model"),
        (["runs/a (1)"], "this training or round directory does not exist"),
        (["~/no such runs (2)/a"], "this training or round directory does not exist"),
        (["MLP", "--mode", "test"], "--mode is test: it must be one of train, eval"),
    ],
)
def test_what_cannot_be_checked(capsys, words, message):
    assert cli.main(["check-model", *words]) == 2
    assert message in capsys.readouterr().err


class Rows(nn.Module):
    """A network that reads an image row by row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.last = nn.LSTM(12, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.rows(x[:, 0])[0][:, -1])


@pytest.mark.slow
def test_a_recurrent_model_is_checked_as_it_is_audited(only):
    only("iDLG")
    check = check_model(Rows(), SHAPE)
    assert (check.derivatives["twice"], check.derivatives["together"]) == ("", "")
    assert check.attacks["iDLG"] == ""
    report = audit(Rows(), "samples", attacks=["iDLG(steps=2)"], victims=Victims(images=2, size=12, channels=1))
    assert {row.engine.partition(" ")[0] for row in report.rows} == {"vmap"}


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_a_wrapped_model_is_the_network_inside(wrap, no_attacks):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(144, 4))

    plain, wrapped = (check_model(one, SHAPE) for one in (network(), wrap(network())))
    assert wrapped.model == plain.model
    assert wrapped.linear == plain.linear
    bare, inside = (
        audit(one, "samples", attacks=["iDLG(steps=2)"], victims=Victims(images=2, size=12, channels=1))
        for one in (network(), wrap(network()))
    )
    assert [row.scores for row in inside.rows] == [row.scores for row in bare.rows]


@pytest.mark.slow
def test_a_file_with_parentheses_in_its_name(tmp_path, capsys, monkeypatch, no_attacks):
    (tmp_path / "net (1).py").write_text(FILE.replace("64", "144"))
    monkeypatch.chdir(tmp_path)
    model = "net (1).py:make"
    assert cli.main(["check-model", model, "--size", "12", "--json"]) == 0
    size = ["--size", "12", "--channels", "1", "--quiet"]
    assert cli.main(["audit", "samples", "--model", model, "--attack", "iDLG(steps=2)", "--images", "2", *size]) == 0
    assert cli.main(["train", "samples", "--model", model, "--rounds", "1", "--clients", "2", *size]) == 0


@pytest.mark.slow
def test_the_equations_of_batches_are_counted(no_attacks):
    check = check_model(Residual(width=80, last=True), SHAPE, 3)
    found = check.capacity["eval"]["batches"]
    assert [one["images"] for one in found] == [1, 2, 4, 8, 16, 32, 64]
    assert {one["separates"] for one in found} == {"last.first.0"}
    shown = text(check)
    assert "   64  last.first.0         two.second.0  last.first.0        two.second.0" in shown.splitlines()
    assert "    1  last.first.0         one.first.0   last.first.0        the images" in shown.splitlines()
    assert "Separates at most 80 images." in shown
    assert "eval, batches of 8, 16 and 32: stops at stem.0: too few equations (batches of 8: 80 equations" in shown
    assert json.loads(json.dumps(check.to_dict()))["capacity"]["train"]["batches"][0]["layers"][0]["equations"] == 1440


@pytest.mark.slow
def test_a_model_that_cannot_be_counted_says_why_in_one_line(no_attacks):
    check = check_model(nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(144, 2)), SHAPE)
    assert check.capacity["train"] == {"why": check.capacity["train"]["why"], "batches": []}
    assert "train, all batches: layer '1' (Dropout) draws at random: use mode eval, or another attack" in text(check)
    assert "eval, all batches: no image is separated: no hidden linear layer" in text(check)


@pytest.mark.slow
def test_counting_never_fails_the_check(no_attacks, monkeypatch):
    def broken(*_):
        raise KeyError("one\ntwo")

    monkeypatch.setattr(module, "capacity_of", broken)
    check = check_model("MLP((16,))", SHAPE)
    why = check.capacity["train"]["why"]
    assert "cannot be counted" in why
    assert "\n" not in why
    assert f"train and eval, all batches: {why}" in text(check)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_counting_takes_no_images_and_little_time(no_attacks, mode):
    network = resnet18(num_classes=2)
    began = time.process_time()
    assert module._capacity(network, (3, 64, 64), mode)["why"] == ""
    assert time.process_time() - began < 10  # about half a second; machines are shared
