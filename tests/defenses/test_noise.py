"""Additive noise: its distribution, its scale in each unit, and its disclosure."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from medpfl.core.errors import InputError
from medpfl.core.types import Update
from medpfl.defenses import GaussianNoise, LaplaceNoise, NoDefense

KINDS = {GaussianNoise: stats.norm, LaplaceNoise: stats.laplace}
VARIANCES = {GaussianNoise: 1.0, LaplaceNoise: 2.0}
SIZE = 40_000

each = pytest.mark.parametrize("kind", KINDS)


def raw() -> Update:
    """Return two tensors with very different root mean squares, 3 and 0.04; together 1.5."""
    draw = torch.Generator().manual_seed(0)
    return Update({
        "large": 3 * torch.randn(100, 100, generator=draw).sign(),
        "small": 0.04 * torch.randn(SIZE - 10_000, generator=draw).sign(),
    })  # fmt: skip


RMS = {"large": 3.0, "small": 0.04}
WHOLE = math.sqrt((10_000 * 9 + 30_000 * 0.0016) / SIZE)


def noise(defense, update=None, seed=1) -> dict[str, torch.Tensor]:
    update = update or raw()
    sent, state = defense.update(update, {"kept": 1}, torch.Generator().manual_seed(seed))
    assert state == {"kept": 1}
    return {k: (t.double() - update.tensors[k].double()) for k, t in sent.tensors.items()}


def unit(relative: str | None, name: str) -> float:
    return {None: 1.0, "norm": WHOLE, "layer": RMS[name]}[relative]


@each
@pytest.mark.parametrize("relative", [None, "norm", "layer"])
@pytest.mark.parametrize("scale", [0.02, 1.5])
def test_distribution(kind, relative, scale):
    for name, added in noise(kind(scale, relative)).items():
        real = scale * unit(relative, name)
        values = added.flatten().numpy()
        assert stats.kstest(values, KINDS[kind](scale=real).cdf).pvalue > 1e-3
        assert values.mean() == pytest.approx(0, abs=5 * real * math.sqrt(VARIANCES[kind] / len(values)))
        assert values.var() == pytest.approx(real**2 * VARIANCES[kind], rel=0.1)
        assert stats.kurtosis(values) == pytest.approx({GaussianNoise: 0.0, LaplaceNoise: 3.0}[kind], abs=0.7)


@each
def test_the_other_distribution_would_be_noticed(kind):
    other = stats.laplace(scale=0.5**0.5) if kind is GaussianNoise else stats.norm(scale=2**0.5)
    values = noise(kind(1.0))["small"].numpy()
    assert stats.kstest(values, other.cdf).pvalue < 1e-6


@each
def test_coordinates_and_tensors_are_independent(kind):
    update = Update({"a": torch.zeros(2, SIZE), "b": torch.zeros(SIZE)})
    added = noise(kind(1.0), update)
    for one, other in ((added["a"][0], added["a"][1]), (added["a"][0], added["b"]), (added["b"][1:], added["b"][:-1])):
        correlation = torch.corrcoef(torch.stack([one, other]))[0, 1]
        assert abs(float(correlation)) < 5 / math.sqrt(SIZE)


@each
def test_the_scale_alone_scales(kind):
    one, ten = (noise(kind(scale), Update({"a": torch.zeros(1000)})) for scale in (0.1, 1.0))
    assert torch.allclose(10 * one["a"], ten["a"], rtol=1e-5)


@each
@pytest.mark.parametrize("relative", [None, "norm", "layer"])
def test_disclosed_precision_is_one_over_the_variance(kind, relative):
    scale, update = 0.3, raw()
    sent, _ = kind(scale, relative).update(update, {}, torch.Generator().manual_seed(2))
    channel = kind(scale, relative).disclose(sent)
    for name, precision in channel.precision.items():
        variance = float((sent.tensors[name] - update.tensors[name]).double().square().mean())
        assert precision.shape == update.tensors[name].shape
        assert precision.unique().numel() == 1
        assert float(precision.flatten()[0]) == pytest.approx(1 / variance, rel=0.1)
    assert channel.bounds is None
    assert channel.apply(update.tensors) is update.tensors


@each
@pytest.mark.parametrize("relative", ["norm", "layer"])
def test_a_relative_scale_is_disclosed_without_the_raw_update(kind, relative):
    """If the noise exceeds the signal, the sent norm is mostly noise; its expected part is subtracted."""
    sent, _ = kind(3.0, relative).update(raw(), {}, torch.Generator().manual_seed(3))
    for name, precision in kind(3.0, relative).disclose(sent).precision.items():
        variance = VARIANCES[kind] * (3.0 * unit(relative, name)) ** 2
        assert float(precision.flatten()[0]) == pytest.approx(1 / variance, rel=0.1)


@each
@pytest.mark.parametrize("relative", ["norm", "layer"])
def test_nothing_is_added_to_nothing(kind, relative):
    zeros = Update({"a": torch.zeros(10)})
    assert noise(kind(1.0, relative), zeros)["a"].tolist() == [0] * 10
    assert kind(1.0, relative).disclose(zeros).precision["a"].isfinite().all()


@each
@pytest.mark.parametrize("scale", [0, 0.0, -0.1, math.nan, math.inf, -math.inf])
def test_scales_that_are_none(kind, scale):
    with pytest.raises(InputError, match=f"scale is {scale}: it must be a number above 0"):
        kind(scale)


@each
@pytest.mark.parametrize("relative", ["Norm", "update", "", True, 0])
def test_units_that_are_none(kind, relative):
    with pytest.raises(InputError, match="choose None, 'norm' or 'layer'"):
        kind(0.1, relative)


def test_tails_of_laplace_reach_far_and_stay_finite(monkeypatch):
    values = noise(LaplaceNoise(1.0), Update({"a": torch.zeros(1_000_000)}), seed=5)["a"]
    assert (values.abs() > math.log(1000)).double().mean().item() == pytest.approx(1e-3, rel=0.2)
    ends = torch.tensor([0.0, 2.0**-53, 0.5, 1 - 2.0**-53], dtype=torch.float64)  # all that rand can give
    monkeypatch.setattr(torch, "rand", lambda *_, **__: ends)
    values = noise(LaplaceNoise(1.0), Update({"a": torch.zeros(4)}))["a"]
    assert values.tolist() == pytest.approx([-53 * math.log(2), -52 * math.log(2), 0, 52 * math.log(2)], rel=1e-6)


def test_the_control_changes_nothing():
    update = raw()
    sent, state = NoDefense().update(update, {}, torch.Generator())
    assert sent is update
    assert state == {}
    assert not any(NoDefense().acts(m) for m in ("model", "batch", "gradient", "update", "aggregate"))
