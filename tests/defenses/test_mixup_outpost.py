"""Mixup mixes with another image; Outpost perturbs the disclosed coordinates at the disclosed rate."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.types import Batch
from medpfl.defenses import Mixup, Outpost


def one_hot_images(count):
    """Return images that identify themselves: mixtures are visible exactly."""
    return Batch(torch.eye(count).view(count, 1, 1, count), torch.arange(count) % 3)


def mix(count=5, alpha=1.0, seed=0):
    defense = Mixup(alpha)
    _, state = defense.model(nn.Linear(count, 3), defense.init(), torch.Generator())
    return defense.batch(one_hot_images(count), state, torch.Generator().manual_seed(seed))[0]


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_mixtures_are_of_two_images_and_labels_alike(count):
    for seed in range(20):
        mixed = mix(count, seed=seed)
        weights = mixed.images.view(count, count)
        assert torch.allclose(weights.sum(1), torch.ones(count))
        assert (weights.diagonal() >= 0.5).all()
        assert ((weights > 0).sum(1) == 2).all(), "never with itself alone"
        assert (weights.diagonal() < 1).all()
        labels = weights @ torch.nn.functional.one_hot(torch.arange(count) % 3, 3).float()
        assert torch.allclose(mixed.labels, labels, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_weights_are_of_the_mirrored_beta_distribution(alpha):
    weights = torch.cat([mix(8, alpha, seed).images.view(8, 8).diagonal() for seed in range(150)]).double().numpy()
    beta = stats.beta(alpha, alpha)
    assert stats.kstest(weights, lambda w: beta.cdf(w) - beta.cdf(1 - w)).pvalue > 1e-3


def test_one_image_cannot_be_mixed():
    with pytest.raises(InputError, match="two images or more"):
        mix(1)
    with pytest.raises(InputError, match="Mixup needs a linear layer"):
        Mixup().model(nn.Conv2d(1, 1, 1), {}, torch.Generator())


def weights_of(stds):
    drawn = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    drawn = (drawn - drawn.mean()) / drawn.std()
    model = nn.ParameterDict({name: nn.Parameter(std * drawn) for name, std in stds.items()})
    model["one"] = nn.Parameter(torch.ones(1))
    return model


def perturb(defense, samples, seed=0, step=0, stds=None):
    _, state = defense.model(weights_of(stds or {"a": 0.1, "b": 3.0}), defense.init(), torch.Generator())
    state = {**state, "steps": step}
    return defense.gradient(samples, state, torch.Generator().manual_seed(seed))


def gradients(count=4):
    draw = torch.Generator().manual_seed(1)
    large = {"a": torch.randn(count, 2000, generator=draw), "b": 0.1 * torch.randn(count, 2000, generator=draw)}
    return {**large, "one": torch.zeros(count, 1)}


def test_noise_follows_the_weights_and_is_dealt_out_once():
    """Noise on all coordinates follows the weights' variance: 0.01, and 1 at most. The sum over images has it once."""
    samples = gradients()
    after, state = perturb(Outpost(0.5, 1.0, 0.0, 0.0), samples)
    assert state["steps"] == 1
    for name, std in (("a", 0.5 * 0.01), ("b", 0.5)):
        assert (after[name] - samples[name]).sum(0).std().item() == pytest.approx(std, rel=0.05)
    assert torch.equal(after["one"], samples["one"]), "a single weight has no variance"


def test_noise_is_where_the_mean_square_is_largest():
    samples = gradients()
    after, _ = perturb(Outpost(0.5, 0.3, 0.0, 0.0), samples)
    noised = torch.cat([(after[k] != samples[k]).any(0) for k in samples])
    fisher = torch.cat([t.square().mean(0) for t in samples.values()])
    assert int(noised.sum()) == pytest.approx(0.3 * 4001, abs=1)
    assert fisher[noised].min() >= fisher[~noised].max()


def test_the_smallest_of_each_tensor_are_pruned():
    samples = gradients()
    after, _ = perturb(Outpost(1e-20, 1.0, 0.4, 0.0), samples)
    for name in ("a", "b"):
        mean = samples[name].mean(0).abs()
        gone = after[name].abs().amax(0) < 1e-15
        assert int(gone.sum()) == 800
        assert mean[gone].max() <= mean[~gone].min()


@pytest.mark.slow
@pytest.mark.parametrize(("step", "decay"), [(0, 5.0), (10, 0.1), (30, 0.1), (7, 0.0)])
def test_perturbation_gets_rarer(step, decay):
    samples = gradients(1)
    hits = sum(perturb(Outpost(0.5, decay=decay), samples, seed, step)[0] is not samples for seed in range(300))
    chance = 1 / (1 + decay * step)
    assert hits == pytest.approx(300 * chance, abs=4 * math.sqrt(300 * chance * (1 - chance)) + 1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda v=v: Mixup(v), f"alpha is {v}") for v in (0, -1, math.inf, math.nan)),
        *((lambda v=v: Outpost(v), f"scale is {v}") for v in (0, -1, math.inf)),
        *((lambda v=v: Outpost(share=v), f"share is {v}") for v in (0, 1.1)),
        *((lambda v=v: Outpost(prune=v), f"prune is {v}") for v in (-0.1, 1)),
        *((lambda v=v: Outpost(decay=v), f"decay is {v}") for v in (-0.1, math.inf)),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
