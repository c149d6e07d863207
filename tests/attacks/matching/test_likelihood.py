from dataclasses import replace

import pytest
import torch
from torch.func import grad

from medpfl.attacks.matching.likelihood import Likelihood, noise_from_columns, with_noise
from medpfl.attacks.matching.priors import ColorVariation
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Update
from medpfl.defenses import Clipping, GaussianNoise, LaplaceNoise, NoDefense, SecAggPlus, TopK
from tests.attacks.scenes import scene, smooth, tiny

LABELS = torch.tensor([[0, 1], [2, 0], [1, 1]])


def seen_by(defense, plan=None, granted=()):
    plan = plan or Plan()
    images = smooth(3 * plan.images).view(3, plan.images, 1, 12, 12)
    return scene(tiny(), images, LABELS[:, : plan.images], plan, defense=defense, threat=ThreatModel(granted))


def updates(seed):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=g, dtype=torch.float64) for k, s in (("a", (30, 4)), ("b", (50,)))}


def test_likelihood_is_half_at_the_noise_and_that_of_scipy():
    from scipy.stats import norm

    sent, deviation = updates(0), 0.3
    fake = {k: t + deviation * updates(1)[k] for k, t in sent.items()}
    precision = {k: torch.full_like(t, deviation**-2) for k, t in sent.items()}
    target = Likelihood(1e-6).prepare({"sent": sent, "precision": precision})
    value, _ = Likelihood().value_and_direction(fake, target)
    assert value.item() == pytest.approx(0.5, rel=0.25)
    residual = torch.cat([(fake[k] - sent[k]).flatten() for k in sent]).numpy()
    expected = norm(0, deviation).logpdf(0) - norm(0, deviation).logpdf(residual).mean()
    assert value.item() == pytest.approx(expected)


def test_the_likelihood_of_laplace_noise_is_that_of_scipy_far_from_its_middle():
    from scipy.stats import laplace

    sent, scale = updates(0), 0.3
    fake = {k: t + 50 * scale * (2 + updates(1)[k].abs()) for k, t in sent.items()}
    precision = {k: torch.full_like(t, 1 / (2 * scale**2)) for k, t in sent.items()}
    precision["b"][:20] = 0  # nothing is known of these
    likelihood = Likelihood(1e-6, laplace=True)
    value, direction = likelihood.value_and_direction(fake, likelihood.prepare({"sent": sent, "precision": precision}))
    known = torch.cat([(fake["a"] - sent["a"]).flatten(), (fake["b"] - sent["b"])[20:]]).numpy()
    expected = laplace(0, scale).logpdf(0) * len(known) - laplace(0, scale).logpdf(known).sum()
    assert value.item() == pytest.approx(expected / 170, rel=5e-3)
    assert (direction["b"][:20] == 0).all()


def test_the_noise_of_a_channel_is_laplace_s_unless_another_adds_to_it():
    sent, laplace, normal = Update({"w": torch.rand(20)}), LaplaceNoise(0.02), GaussianNoise(0.1)
    assert seen_by(laplace, granted=("defense",)).views[0].channel.laplace
    assert (laplace | TopK(keep=0.3)).disclose(sent, Plan()).laplace
    assert not any(d.disclose(sent, Plan()).laplace for d in (normal, laplace | normal, normal | laplace))
    mean = replace(sent, num_samples=3)
    assert not (laplace | SecAggPlus()).disclose(mean, Plan()).laplace, "a mean of three"


@pytest.mark.parametrize("laplace", [False, True])
@pytest.mark.parametrize("kinds", [(), ("precision",), ("bounds",), ("precision", "bounds")])
def test_direction_is_the_derivative(kinds, laplace):
    known = {"sent": updates(0)} | {kind: {k: t.square() for k, t in updates(2).items()} for kind in kinds}
    likelihood = Likelihood(laplace=laplace)
    target, fake = likelihood.prepare(known), updates(1)
    _, direction = likelihood.value_and_direction(fake, target)
    auto = grad(lambda f: likelihood.value_and_direction(f, target)[0])(fake)
    assert all(torch.allclose(direction[k], auto[k]) for k in fake)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(batch_size=2),
        Plan(algorithm="FedAvg", batch_size=1, local_images=2, epochs=2, momentum=0.9, learning_rate=1.0),
    ],
    ids=["one", "batch", "FedAvg"],
)
def test_columns_of_the_last_matrix_tell_the_noise(plan):
    seen = seen_by(LaplaceNoise(0.02), plan)
    variance = noise_from_columns(seen, seen.views[0])
    assert torch.allclose(variance, torch.full((3,), 2 * 0.02**2), rtol=0.3)
    clean = seen_by(NoDefense(), plan)
    assert (noise_from_columns(clean, clean.views[0]) < 1e-12).all()


def test_columns_tell_nothing_under_weight_decay():
    seen = seen_by(NoDefense(), Plan(algorithm="FedAvg", weight_decay=0.1))
    assert noise_from_columns(seen, seen.views[0]) is None


def test_what_is_told_of_noise_stays_and_what_is_not_is_estimated():
    granted = seen_by(GaussianNoise(0.05), granted=("defense",))
    assert with_noise(granted).views[0] is granted.views[0]
    pruned = seen_by(TopK(keep=0.3), granted=("defense",))
    assert with_noise(pruned).views[0] is pruned.views[0]
    naive = with_noise(seen_by(GaussianNoise(0.05))).views[0].channel.precision
    for name, tensor in granted.views[0].channel.precision.items():
        assert naive[name].shape == tensor.shape
        assert torch.allclose(naive[name], tensor, rtol=0.3)
    clipped = seen_by(Clipping(0.1), granted=("defense",))
    assert with_noise(clipped).views[0].channel.apply is clipped.views[0].channel.apply


def test_the_floor_adds_to_the_variance_and_silence_stays_silence():
    sent = {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([2.0])}
    precision = {"a": torch.tensor([4.0, 0.0]), "b": torch.tensor([torch.inf])}
    weight = Likelihood(floor=0.1).prepare({"sent": sent, "precision": precision})["weight"]
    assert torch.allclose(3 * weight["a"], torch.tensor([1 / (0.25 + 0.01 * 5), 0.0]))
    assert torch.allclose(3 * weight["b"], torch.tensor([1 / (0.01 * 4)]))
    plain = Likelihood(floor=0.1).prepare({"sent": sent})["weight"]
    assert torch.allclose(3 * plain["a"], torch.full((2,), 1 / (0.01 * 5)))
    with pytest.raises(InputError, match="floor"):
        Likelihood(floor=0.0)


def test_color_variation_by_hand():
    image = torch.tensor([[[0.0, 0.3], [0.4, 0.4]], [[0.0, 0.0], [0.0, 0.2]]])[None]
    squares = [0.3**2 + 0.4**2, 0.1**2 + 0.2**2, 0.2**2, 0.0]
    expected = sum((s + 0.05**2) ** 0.5 - 0.05 for s in squares)
    assert ColorVariation(2.0, soft=0.05)(image).item() == pytest.approx(2 * expected, rel=1e-5)
    one, two = torch.rand(2, 1, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    both = ColorVariation()(torch.cat([one, two]))
    assert both.item() == pytest.approx((ColorVariation()(one) + ColorVariation()(two)).item(), rel=1e-5)
    assert ColorVariation()(torch.full((1, 1, 3, 4, 5), 0.2)).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="soft"):
        ColorVariation(soft=0.0)
