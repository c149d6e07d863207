"""R-GAP through deep networks is exact as far as it recovers values, and reports where it stops."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from benchmarks.trained import untrained
from medpfl import audit
from medpfl.attacks import RGAP, DeepRGAP, iDLG
from medpfl.attacks.deep.backward_walk import peel
from medpfl.attacks.deep.front_search import Front
from medpfl.attacks.deep.graph import graph_of
from medpfl.attacks.deep.kernel_systems import active, inputs, places, pulls
from medpfl.attacks.optimize.coordinates import Pixels
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Weights
from medpfl.defenses import Clipping, GaussianNoise
from medpfl.federated.ready import prepare
from medpfl.metrics import ssim
from medpfl.models import ConvNet, DenseNet121, LeNet, ResNet
from tests.attacks.residual import built
from tests.attacks.scenes import scene, smooth
from tests.flat import flat

LABELS = torch.tensor([[0], [2], [1]])
EVAL = Plan(mode="eval")


def read(network: nn.Module, image: torch.Tensor, label: int = 1):
    """Return the graph, the recovered values, and the gradients they came from, all in float64."""
    graph = graph_of(network, Weights.of(network), tuple(image.shape[1:]))
    parameters = {k: t.detach().requires_grad_() for k, t in network.named_parameters()}
    loss = functional.cross_entropy(functional_call(network, parameters, (image,)), torch.tensor([label]))
    made = torch.autograd.grad(loss, list(parameters.values()))
    gradients = {k: t.double() for k, t in zip(parameters, made, strict=True)}
    return graph, peel(graph, gradients), gradients


def attacked(network, images, attack=None, plan=EVAL, **options):
    seen = scene(network, images[:, None], LABELS[: len(images)], plan, **options)
    return (attack or DeepRGAP())(seen, torch.Generator().manual_seed(0))


def test_every_value_that_is_read_is_what_the_network_computed():
    network, image = built(), smooth(1, 1, 12)
    graph, found, _ = read(network, image)
    made = graph.run(image.double(), graph.nodes, graph.fixed)
    assert len(found.known) >= 7
    for node, value in found.known.items():
        assert (value - made[node]).abs().max() < 1e-4 * made[node].abs().max(), node
    assert found.rim(graph) == (graph.image,)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_that_equations_tell_is_read_without_a_search(channels):
    images = smooth(3, channels, 12)
    guess = attacked(built(channels=channels), images)
    assert (guess.guesses[:, 0] - images).abs().max() < 1e-3
    assert guess.labels.tolist() == LABELS.tolist()
    assert guess.ended == ("converged",) * 3
    assert (guess.loss < 1e-5).all()


@pytest.mark.slow
def test_an_image_behind_max_pooling_is_searched_for_by_what_comes_out_of_it():
    network, images = built(nn.MaxPool2d(3, 2, 1), width=64), smooth(3, 1, 24)
    graph, found, _ = read(network, images[:1])
    (rim,) = found.rim(graph)
    assert graph.shapes[rim] == (1, 64, 4, 4)
    guess = attacked(network, images)
    assert (ssim(guess.guesses[:, 0], images) > 0.8).all()


@pytest.mark.slow
@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh()])
def test_other_activations_have_their_slopes(activation):
    images = smooth(3, 1, 12)
    assert (attacked(built(activation=activation), images).guesses[:, 0] - images).abs().max() < 1e-2


@pytest.mark.slow
def test_one_local_step_and_a_common_factor_are_a_gradient():
    images = smooth(3, 1, 12)
    step = attacked(built(), images, plan=Plan("FedAvg", learning_rate=0.3, mode="eval"))
    clipped = attacked(built(), images, defense=Clipping(1e-3))
    assert (step.guesses[:, 0] - images).abs().max() < 1e-3
    assert (clipped.guesses[:, 0] - images).abs().max() < 1e-3


@pytest.mark.slow
def test_a_resnet_is_read_up_to_its_max_pooling():
    case = untrained(32, 1, 100)
    graph, found, _ = read(case.network, case.images)
    (rim,) = found.rim(graph)
    made = graph.value(case.images.double(), rim)
    assert graph.shapes[rim] == (1, 64, 8, 8)
    assert (found.known[rim] - made).abs().max() < 1e-4 * made.max()


@pytest.mark.slow
def test_noise_is_not_taken_for_values():
    images = smooth(3, 1, 12)
    graph, found, gradients = read(built(), images[:1])
    random = {k: torch.randn(t.shape, dtype=t.dtype, generator=torch.Generator()) for k, t in gradients.items()}
    assert not peel(graph, random).known
    assert not peel(graph, {k: 0 * t for k, t in gradients.items()}).known
    guess = attacked(built(), images, defense=GaussianNoise(0.1))
    assert guess.guesses.isfinite().all()
    assert guess.ended == ("stalled",) * 3
    assert found.known


def tampered(change):
    """Attack three updates after a change to their tensors."""
    seen = scene(built(), smooth(3, 1, 12)[:, None], LABELS, EVAL)
    view = seen.views[0]
    tensors = {k: t.clone() for k, t in view.update.tensors.items()}
    change(tensors)
    other = type(view)(view.weights, view.plans, view.update.replace(tensors))
    return DeepRGAP()(type(seen)(seen.model, (other,), (1, 12, 12), 3), torch.Generator())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["head.bias", "one.first.0.weight", "stem.0.weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_update_that_is_not_finite_is_called_so(name, value):
    def change(tensors):
        tensors[name][1].view(-1)[0] = value

    guess = tampered(change)
    assert guess.ended == ("converged", "nonfinite", "converged")
    assert guess.unread == ("", "the update holds values that are not finite", "")
    assert guess.guesses.isfinite().all()


def test_a_guess_of_nothing_is_gray_whatever_the_statistics_say():
    network = ConvNet(width=4, depth=2, norm="batch").build((1, 12, 12), 3, 0)
    seen = scene(network, smooth(1).view(1, 1, 1, 12, 12), LABELS[:1], Plan(mode="train"))
    for update in seen.views[0].update.tensors.values():
        update.normal_(generator=torch.Generator().manual_seed(0))
    guess = DeepRGAP()(seen, torch.Generator().manual_seed(0))
    assert guess.ended == ("stalled",)
    assert (guess.guesses == 0.5).all()
    assert guess.unread[0]


@pytest.mark.slow
def test_what_was_misread_is_not_called_converged():
    guess = tampered(lambda tensors: tensors["stem.0.weight"].mul_(2))  # an image that fits it fits no other layer
    assert guess.loss.min() > 1e-2
    assert "converged" not in guess.ended


@pytest.mark.slow
def test_rectifiers_that_cannot_be_put_right_do_not_keep_it_from_ending(monkeypatch):
    network, image = built(), smooth(1, 1, 12)
    monkeypatch.setattr("medpfl.attacks.deep.recovered_values._SURE", 1e5)  # takes small values for rectified ones
    whole = read(network, image)[1]
    monkeypatch.setattr("medpfl.attacks.deep.backward_walk._CORRECTIONS", 1)
    part = read(network, image)[1]
    assert len(whole.known) >= len(part.known) > 0


class Shifted(nn.Module):
    """A network that copies one convolution output to four positions and adds a constant to each."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 12), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(functional.relu(self.conv(x) + torch.tensor([[0.0, 0.1], [0.2, 0.3]])).mean((2, 3)))


class Drawing(nn.Module):
    """A network that drops values in every mode."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(144, 3)

    def forward(self, x):
        return self.head(functional.dropout(x.flatten(1), 0.5, training=True))


class Blind(nn.Module):
    """A network that ignores the image."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.ones(1, 4, dtype=x.dtype))


def dead() -> nn.Module:
    """Return a network whose stem has no active unit."""
    network = built()
    nn.init.constant_(network.stem[1].bias, -50.0)
    return network


def averaged() -> nn.Module:
    """Return two plain convolutions and a 4 x 4 average."""
    layers = (built().stem, nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(32, 3))


def unbiased() -> nn.Module:
    """Return a network with pooling and a last layer without bias."""
    return nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3, bias=False))


REFUSED = {
    "a chain": (lambda: LeNet("idlg").build((1, 12, 12), 3, 0), EVAL, "attack with RGAP"),
    "batch": (built, Plan(batch_size=2, mode="eval"), "one gradient of one image"),
    "blind": (Blind, EVAL, "not a tensor that depends on the image"),
    "broadcast": (Shifted, EVAL, "at most"),
    "dead": (dead, EVAL, "at most 0 values"),
    "dropout": (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3)), Plan(), "draws at random"),
    "dropout as a function": (Drawing, EVAL, "draws at random"),
    "masks": (lambda: nn.Conv2d(1, 3, 3, padding=1), EVAL, "a class for every pixel"),
    "no bias": (unbiased, EVAL, "with a bias"),
    "pooling": (lambda: ConvNet(4, 2).build((1, 12, 12), 3, 0), EVAL, "at most"),
    "wide average": (averaged, EVAL, "does not show which of its 4x4 outputs"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_take_is_refused_with_the_reason(name):
    make, plan, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        DeepRGAP().check(prepare(make(), plan), (plan,), (1, 12, 12))


@pytest.mark.slow
@pytest.mark.parametrize("network", [ResNet(18), DenseNet121()], ids=repr)
def test_a_large_model_that_it_does_not_take_is_told_the_layer(network):
    plan = Plan(mode="train" if isinstance(network, ResNet) else "eval")
    reason = "layer 'layer4.1.bn2': batch norm in train mode" if isinstance(network, ResNet) else "operation 'cat"
    with pytest.raises(InputError, match=reason):
        DeepRGAP().check(prepare(network.build((1, 40, 40), 3, 0), plan), (plan,), (1, 40, 40))


class Branching(nn.Module):
    """A network whose code branches on the image."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(144, 3)

    def forward(self, x):
        return self.head(nn.functional.relu(x).flatten(1) if x.mean() > 0.3 else -x.flatten(1))


class Broken(nn.Module):
    """A network that accepts no image."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(100, 3)

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.parametrize("network", [Branching(), Broken()])
def test_a_model_that_is_no_list_of_operations_is_refused(network):
    with pytest.raises(InputError, match="cannot be listed"):
        graph_of(network, Weights.of(network), (1, 12, 12))


def test_the_equations_of_a_convolution_are_its_gradient():
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 12, 3, 2, 1, bias=False).double()
    x, pull = torch.rand(1, 2, 5, 6).double(), torch.randn(1, 12, 3, 3).double()
    (sent,) = torch.autograd.grad(convolution(x), convolution.weight, pull)
    where = places((5, 6), (3, 3), {"stride": 2, "padding": 1, "dilation": 1})
    found = inputs(pull[0].flatten(1), sent.flatten(2), where, 30)
    assert found is not None
    assert torch.allclose(found.value.view(x[0].shape), x[0])
    assert torch.allclose(pulls(found.value, sent.flatten(2), where), pull[0].flatten(1))
    assert inputs(pull[0, :3].flatten(1), sent[:3].flatten(2), where, 30) is None  # 27 equations
    assert inputs(torch.zeros(12, 9).double(), sent.flatten(2), where, 30) is None


def test_rows_that_do_not_fit_are_told_and_put_right():
    torch.manual_seed(0)
    x, pull = torch.rand(1, 16, 4, 4).double(), torch.randn(1, 32, 4, 4).double()
    convolution = nn.Conv2d(16, 32, 3, 1, 1, bias=False).double()
    (sent,) = torch.autograd.grad(convolution(x), convolution.weight, pull)
    sent, where = sent.flatten(2), places((4, 4), (3, 3), {"stride": 1, "padding": 1, "dilation": 1})
    wrong = pull[0].flatten(1).clone()
    wrong[3, 5], wrong[20, 0] = 0.0, 0.0
    found = inputs(wrong, sent, where, 16)
    assert found is not None
    assert found.odd.nonzero()[:, 0].tolist() == [3, 20]
    assert torch.allclose(found.value.view(x[0].shape), x[0], atol=1e-9)
    assert torch.allclose(pulls(found.value, sent[found.odd], where), pull[0].flatten(1)[found.odd], atol=1e-8)


@pytest.mark.parametrize(("edge", "told"), [(1, True), (2, True), (3, False)])
def test_which_outputs_were_passed_shows_at_the_rim_of_a_small_map(edge, told):
    torch.manual_seed(0)
    x, pull = torch.rand(1, 4, edge, edge).double(), torch.randn(1, 16, edge, edge).double()
    on = torch.rand(pull.shape) > 0.5
    convolution = nn.Conv2d(4, 16, 3, 1, 1, bias=False).double()
    (sent,) = torch.autograd.grad(convolution(x), convolution.weight, pull * on)
    where = places((edge, edge), (3, 3), {"stride": 1, "padding": 1, "dilation": 1})
    found = active(pull[0].flatten(1), sent.flatten(2), where, edge * edge)
    assert (found is not None) is told
    if found is not None:
        assert torch.equal(found, on[0].flatten(1))


@pytest.mark.slow
def test_the_front_has_the_slope_of_its_distance():
    network, image = built(nn.MaxPool2d(3, 2, 1)), smooth(2, 1, 12)
    graph, found, _ = read(network, image[:1])
    node = found.rim(graph)[0] if found.rim(graph) else graph.output
    target = graph.value(image[:1].double(), node)
    front = Front(graph, {node: torch.stack([target, target])}, Pixels())
    z = front.variables(image[:, None].double())
    loss, slope = front.evaluate(z, torch.arange(2))
    assert loss[0] < 1e-20 < loss[1]
    along = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator())
    ahead, behind = (front.evaluate(z + step * along, torch.arange(2))[0] for step in (1e-6, -1e-6))
    assert torch.allclose((ahead - behind)[1] / 2e-6, (slope * along).sum(1)[1], rtol=1e-4)


@pytest.mark.slow
def test_an_audit_that_leaves_it_out_names_it_and_one_that_runs_it_reads(monkeypatch, other_attacks):
    few = {"iDLG": iDLG, "DeepRGAP": DeepRGAP, "RGAP": RGAP}
    monkeypatch.setattr("medpfl.auditing.feasibility.registry", lambda package: few)
    options = {"size": 12, "channels": 1, "images": 2, "plan": EVAL}
    told = flat(audit, built(classes=4), "samples", attacks=["iDLG(steps=1)"], **options).settings.not_run
    assert told["suited"] == ["DeepRGAP()"]
    rows = flat(audit, built(classes=4), "samples", attacks=["DeepRGAP"], **options).rows
    assert all(row.scores["ssim"] > 0.99 for row in rows if not row.control)
