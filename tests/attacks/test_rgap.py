"""The analytic attack is exact where it applies, raises an error elsewhere, and reports noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import grad

from benchmarks.scenes import scene as real_scene
from medpfl import Victims, audit
from medpfl.attacks import RGAP, GradientMatching, iDLG
from medpfl.attacks.inversion.chain import activation
from medpfl.attacks.inversion.layers import layer_input, noise_of
from medpfl.attacks.matching.solved_start import Analytic, Solved
from medpfl.attacks.matching.starts import Normal
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.defenses import Clipping, GaussianNoise
from medpfl.inputs.parts import attacks_of
from medpfl.metrics import ssim
from medpfl.models import MLP, ConvNet, LeNet
from tests.attacks.scenes import scene, smooth, tiny

LABELS = torch.tensor([[0], [2], [1]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(network: nn.Module) -> nn.Module:
    return network.double().eval()


def drawn(*layers: nn.Module, scale: float = 0.5) -> nn.Sequential:
    network = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-scale, scale, generator=generator(7))
    return network


def attacked(network, images, attack=None, plan=None, **options):
    """Attack V images (V, C, H, W); return the errors (V,) in the maximum norm, and the guess."""
    images = images.to(next(network.parameters()))
    seen = scene(network, images[:, None], LABELS[: len(images)], plan or Plan(), **options)
    guess = (attack or RGAP())(seen, generator())
    return (guess.guesses[:, 0] - images).abs().flatten(1).amax(1), guess


EXACT = RGAP(steps=5000, tolerance=1e-12)
NETWORKS = {
    "linear": lambda: drawn(nn.Flatten(), nn.Linear(108, 3)),
    "MLP": lambda: double(MLP((20, 10), "gelu").build((3, 6, 6), 3, 0)),
    "MLP without its first bias": lambda: drawn(
        nn.Flatten(), nn.Linear(108, 20, bias=False), nn.Tanh(), nn.Linear(20, 3)
    ),
    "dropout behind the first layer": lambda: double(MLP((20,), dropout=0.5).build((3, 6, 6), 3, 0)),
    "stride 2": lambda: drawn(nn.Conv2d(3, 12, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(108, 3)),
    "no padding": lambda: drawn(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 3)),
    "dilation, no bias": lambda: drawn(
        nn.Conv2d(3, 8, 3, padding=2, dilation=2, bias=False), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(288, 3)
    ),
    "same, two layers": lambda: drawn(
        nn.Conv2d(3, 8, 3, padding="same"), nn.ELU(), nn.Conv2d(8, 8, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(128, 3)
    ),
    "two linear layers": lambda: drawn(
        nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(128, 40), nn.ReLU(), nn.Linear(40, 3)
    ),
    "normalized": lambda: drawn(Normalize(), nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(128, 3)),
    "functions between layers": lambda: drawn(Functional()),
    "batch norm in eval mode": lambda: double(
        drawn(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Flatten(), nn.Linear(128, 3))
    ),
    "wide ReLU": lambda: drawn(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 3)),
}


class Normalize(nn.Module):
    def forward(self, x):
        return (x - 0.4) / torch.tensor([0.2, 0.3, 0.5]).view(3, 1, 1)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(128, 3)

    def forward(self, x):
        return self.fc(torch.sigmoid(self.conv(x)).flatten(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_exact_in_float64(name):
    network = NETWORKS[name]()
    plan = Plan(mode="train" if name.startswith("dropout") else "eval")
    error, guess = attacked(network, smooth(3, 3, 6), EXACT, plan)
    assert error.max() < 1e-5
    assert guess.ended == ("stalled" if name.startswith("dropout") else "converged",) * 3  # masks are not known
    assert guess.labels.tolist() == LABELS.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dlg", "idlg"])
def test_reads_lenets_from_float32(variant):
    _, guess = attacked(LeNet(variant).build((1, 16, 16), 3, 1), smooth(3, 1, 16))
    assert (ssim(guess.guesses[:, 0], smooth(3, 1, 16)) > 0.999).all()
    assert guess.ended == ("converged",) * 3


def test_one_local_step_is_a_gradient():
    error, _ = attacked(tiny(size=8), smooth(3, 1, 8), plan=Plan("FedAvg", learning_rate=0.3))
    assert error.max() < 1e-2


def test_a_common_factor_cancels():
    error, guess = attacked(tiny(size=8).double(), smooth(3, 1, 8), EXACT, defense=Clipping(1e-3))
    assert error.max() < 1e-4
    assert guess.ended == ("converged",) * 3


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(4, 8), st.integers(4, 8), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2))
def test_any_geometry_is_exact_or_refused(channels, height, width, kernel, stride, padding):
    convolution = nn.Conv2d(channels, 8, kernel, stride, padding)
    shape = convolution(torch.zeros(1, channels, height, width)).shape[1:]
    network = drawn(convolution, nn.Sigmoid(), nn.Flatten(), nn.Linear(shape.numel(), 3))
    images = smooth(2, channels, 8)[..., :height, :width]
    if shape.numel() + convolution.weight.numel() < channels * height * width:
        with pytest.raises(InputError, match="layer '0' loses information"):
            attacked(network, images)
        return
    error, guess = attacked(network, images, EXACT)
    # Enough equations may still be dependent; then the guess is the likeliest image among many that explain it.
    assert error.max() < 1e-3 or guess.loss.max() < 1e-5
    assert guess.loss.max() < 1e-5


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid()
        self.other, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(256, 3)

    def forward(self, x):
        h = self.act(self.conv(x))
        return self.fc((h + self.other(h)).flatten(1))


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid()
        self.fc, self.way = nn.Linear(256, 3), nn.Linear(256, 3)

    def forward(self, x):
        h = self.act(self.conv(x)).flatten(1)
        return self.fc(h) + self.way(h * h)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(torch.sigmoid(self.conv(torch.sigmoid(self.conv(x)))).flatten(1))


def frozen():
    network = tiny(size=8)
    network[0].weight.requires_grad_(False)
    return network


REFUSED = {
    "strides": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, 4), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 3)), "loses"),
    "pooling": (lambda: ConvNet(8, 2, activation="sigmoid").build((1, 8, 8), 3, 0), "'0.2' .AvgPool2d. loses"),
    "GELU": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 3)), "'1' .GELU"),
    "no bias": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False)), "no linear layer with a bias"),
    "a sum": (Residual, "'fc' does not take its input directly from layer 'other'"),
    "a way around": (Around, "'conv' does not get its whole gradient through layer 'fc'"),
    "used twice": (Twice, "'conv' is used 2 times"),
    "frozen": (frozen, "'0' is frozen"),
    "circular padding": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(256, 3)),
        "'0': a convolution",
    ),
    "uneven padding": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 2, padding="same"), nn.Flatten(), nn.Linear(256, 3)),
        "'0': a convolution",
    ),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(144, 3)),
        "'1': a convolution",
    ),
    "train batch norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 3)),
        "'1' normalizes by its own batch",
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 3)),
        "'1' .GroupNorm. cannot be inverted",
    ),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 3)), "'0' .Dropout. draws"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refuses_models_before_it_starts_and_the_start_falls_back(name):
    make, message = REFUSED[name]
    torch.manual_seed(0)
    network = make()
    seen = scene(network, smooth(2, 1, 8)[:, None], LABELS[:2], Plan())
    with pytest.raises(InputError, match=message):
        RGAP()(seen, generator())
    with pytest.raises(InputError, match=message):
        RGAP().check(seen.model, (Plan(),), (1, 8, 8))
    assert Analytic().of(seen, generator()) == Normal()


PLANS = {
    "2 images": Plan(batch_size=2),
    "2 steps": Plan("FedAvg", epochs=2),
    "weight decay": Plan("FedAvg", weight_decay=0.1),
}


@pytest.mark.parametrize("reason", PLANS)
def test_refuses_plans(reason):
    plan = PLANS[reason]
    images = smooth(2 * plan.images, 1, 8).view(2, plan.images, 1, 8, 8)
    seen = scene(tiny(size=8), images, LABELS[:2].repeat(1, plan.images), plan)
    with pytest.raises(InputError, match=reason):
        RGAP()(seen, generator())
    start = iDLG(steps=3, start=Analytic())(seen, generator())
    assert torch.equal(start.guesses, iDLG(steps=3)(seen, generator()).guesses)


def test_an_audit_refuses_it_before_any_work():
    with pytest.raises(InputError, match=r"'0.2' \(AvgPool2d\) loses information"):
        audit("ConvNet(width=8, depth=2)", attacks=["iDLG(steps=2)", "RGAP"], victims=Victims(images=3))


@pytest.mark.slow
def test_an_audit_takes_it_and_its_start_by_spec():
    report = audit(
        "LeNet('idlg')", attacks=["RGAP", "iDLG(steps=20, start=Analytic())"], victims=Victims(images=3, size=16)
    )
    assert all(cell.asr.value == 1 for cell in report.summary)
    (made,) = attacks_of(["GradientMatching(start=Analytic(steps=40))"])
    assert made == GradientMatching(start=Analytic(40))


@pytest.mark.slow
def test_noise_degrades_and_shows():
    network, images = LeNet("idlg").build((1, 16, 16), 3, 1), smooth(3, 1, 16)
    errors, losses = [], []
    for scale in (1e-4, 1e-3, 1e-2):
        _, guess = attacked(network, images, defense=GaussianNoise(scale))
        errors.append((guess.guesses[:, 0] - images).square().mean().item())
        losses.append(guess.loss.mean().item())
        assert set(guess.ended) <= {"stalled", "max_steps"}
    assert errors == sorted(errors)
    assert losses == sorted(losses)
    assert errors[1] < images.var().item() / 2 < 10 * errors[2]


def test_what_a_zero_update_says_is_nothing():
    seen = scene(tiny(size=8), smooth(2, 1, 8)[:, None], LABELS[:2], Plan())
    for tensor in seen.views[0].update.tensors.values():
        tensor[0] = 0
    guess = RGAP()(seen, generator())
    assert guess.ended == ("nonfinite", "converged")
    assert (guess.guesses[0] == 0.5).all()
    solved = Analytic().of(seen, generator())
    assert isinstance(solved, Solved)
    own = [generator(v) for v in range(2)]
    started = solved.images((1, 1, 8, 8), torch.arange(2), own)
    assert (started[0] == 0.5).all()  # not rough: the other victims' warm-up is left out for all
    assert torch.allclose(started[1], guess.guesses[1])


@pytest.mark.slow
def test_permuted_victims_have_permuted_guesses():
    network, images = LeNet("idlg").build((1, 12, 12), 3, 1), smooth(3, 1, 12)
    order = torch.tensor([2, 0, 1])
    _, one = attacked(network, images)
    seen = scene(network, images[order][:, None], LABELS[order], Plan())
    other = RGAP()(seen, generator())
    assert torch.allclose(other.guesses, one.guesses[order], atol=2e-3)
    assert torch.equal(other.labels, one.labels[order])


def test_a_stack_of_many_is_solved_in_parts(monkeypatch):
    network, images = tiny(size=8), smooth(3, 1, 8)
    _, whole = attacked(network, images)
    monkeypatch.setattr("medpfl.attacks.inversion.recursion._TOGETHER", 2)
    _, parts = attacked(network, images)
    assert torch.allclose(whole.guesses, parts.guesses, atol=1e-3)


@pytest.mark.slow
def test_the_start_needs_no_warm_up_and_restarts_are_normal():
    images = smooth(2, 1, 12)
    seen = scene(tiny(), images[:, None], LABELS[:2], Plan())
    guess = iDLG(steps=30, start=Analytic())(seen, generator())
    assert (guess.guesses[:, 0] - images).abs().max() < 0.02
    plain = iDLG(steps=30)(seen, generator())
    assert (guess.loss < plain.loss).all()
    assert Analytic().again() == Normal()
    assert Analytic()((1, 1, 4, 4), generator()).shape == (1, 1, 4, 4)


def test_analytic_labels_are_those_granted():
    _, guess = attacked(tiny(size=8), smooth(3, 1, 8), threat=ThreatModel(("labels",)))
    assert guess.labels.tolist() == LABELS.tolist()


@pytest.mark.slow
@given(st.integers(1, 4), st.integers(2, 6), st.integers(1, 9), st.integers(0, 99))
def test_a_linear_layer_tells_its_input_and_the_noise(victims, outputs, inputs, seed):
    x, pull = (torch.randn(victims, n, generator=generator(seed), dtype=torch.float64) for n in (inputs, outputs))
    weight = pull[:, :, None] * x[:, None]
    assert torch.allclose(layer_input(weight, pull), x)
    assert (noise_of(weight, pull, 1e-16) < 1e-12).all()


def test_noise_is_told_by_the_lost_rank():
    x, pull = torch.randn(2, 500, generator=generator(1)), torch.randn(2, 4, generator=generator(2))
    weight = pull[:, :, None] * x[:, None]
    noisy = weight + 0.01 * torch.randn(weight.shape, generator=generator(3))
    assert torch.allclose(noise_of(noisy, pull, 1e-7), torch.tensor(0.01), rtol=0.1)


@pytest.mark.parametrize(
    "layer", [nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(0.3), nn.ELU(1.7), nn.ReLU()], ids=lambda m: type(m).__name__
)
def test_activations_are_inverted_with_their_slopes(layer):
    z = torch.linspace(-3, 3, 60, dtype=torch.float64)
    found, h = activation("a", layer), layer(z)
    alive = slice(30, None) if found.dead else slice(None)
    assert torch.allclose(found.inverse(h)[alive], z[alive])
    assert torch.allclose(found.slope(h), grad(lambda z: layer(z).sum())(z))
    assert h.min() >= found.low
    assert h.max() <= found.high


@pytest.mark.slow
def test_real_images(real_sets):
    case = real_scene("brain_mri", "idlg", 3, seed=3, tune=True)
    guess = RGAP()(case.seen, generator())
    assert (ssim(guess.guesses[:, 0], case.truths) > 0.99).all()
