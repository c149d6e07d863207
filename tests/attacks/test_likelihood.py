from dataclasses import replace

import pytest
import torch
from scenes import scene, smooth, tiny
from torch.func import grad

from medpfl.attacks.likelihood import Likelihood, noise_from_columns, with_precision
from medpfl.attacks.priors import ColorVariation
from medpfl.core.channel import Channel
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.defenses import Clipping, GaussianNoise, LaplaceNoise, NoDefense, TopK

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
    target = Likelihood().prepare({"sent": sent, "precision": precision})
    value, _ = Likelihood().value_and_direction(fake, target)
    assert value.item() == pytest.approx(0.5, rel=0.25)
    residual = torch.cat([(fake[k] - sent[k]).flatten() for k in sent]).numpy()
    expected = norm(0, deviation).logpdf(0) - norm(0, deviation).logpdf(residual).mean()
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("kinds", [(), ("precision",), ("bounds",), ("precision", "bounds")])
def test_direction_is_the_derivative(kinds):
    known = {"sent": updates(0)} | {kind: {k: t.square() for k, t in updates(2).items()} for kind in kinds}
    target, fake = Likelihood().prepare(known), updates(1)
    _, direction = Likelihood().value_and_direction(fake, target)
    auto = grad(lambda f: Likelihood().value_and_direction(f, target)[0])(fake)
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


def test_every_view_gets_a_precision():
    told = with_precision(seen_by(GaussianNoise(0.05), granted=("defense",)), 1e-3).views[0].channel.precision
    naive = with_precision(seen_by(GaussianNoise(0.05)), 1e-3).views[0].channel.precision
    for name, tensor in told.items():
        assert torch.allclose(tensor, torch.full_like(tensor, 0.05**-2), rtol=1e-3)
        assert torch.allclose(naive[name], tensor, rtol=0.3)


def test_without_noise_the_floor_is_relative_to_each_tensor():
    seen = seen_by(TopK(keep=0.3), granted=("defense",))
    told = with_precision(seen, 1e-2).views[0].channel
    assert told.bounds is seen.views[0].channel.bounds
    for name, sent in seen.views[0].update.tensors.items():
        square = sent[1].square().mean()
        expected = (1e-4 * square.clamp(min=1e-30)) ** -1
        assert torch.allclose(told.precision[name][1], expected.expand_as(sent[1]), rtol=1e-3)


def test_what_says_nothing_stays_without_precision_and_what_mixes_stays_applied():
    seen = seen_by(NoDefense())
    sent = seen.views[0].update.tensors
    channel = Channel(precision={k: (t > 0).to(t) for k, t in sent.items()})
    silent = replace(seen, views=(replace(seen.views[0], channel=channel),))
    after = with_precision(silent, 1e-2).views[0].channel.precision
    assert all(torch.equal(after[k] > 0, t > 0) for k, t in sent.items())
    clipped = seen_by(Clipping(0.1), granted=("defense",))
    assert with_precision(clipped, 1e-2).views[0].channel.apply is clipped.views[0].channel.apply


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
