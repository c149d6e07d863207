"""Channels: one change after another, and many victims at once."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

from medpfl.core.channels.channel import Channel

ONES = {"w": torch.ones(3)}


def times(factor):
    return lambda tensors: {k: t * factor for k, t in tensors.items()}


def plus(tensors, known):
    return {k: t + known[k] for k, t in tensors.items()}


def of(*values):
    return {"w": torch.tensor(values)}


def test_silence_is_exact():
    assert Channel()(ONES) is ONES
    assert Channel().then().apply is Channel().apply
    assert Channel().then().precision is None
    assert Channel().then().bounds is None


def test_changes_are_applied_in_order():
    channel = (
        Channel().then(times(2)).then(plus, known=of(1.0, 2.0, 3.0)).then(times(10)).then(plus, known=of(5.0, 5.0, 5.0))
    )
    assert channel(ONES)["w"].tolist() == [35, 45, 55]
    assert channel.apply(ONES, channel.known)["w"].tolist() == [35, 45, 55]
    assert len(channel.known) == 2, "the same name in two changes"


def test_noise_and_errors_pass_through_later_gains():
    """Variance 1/4 after gain 2 is 1, and 1 more is 2; a bound of 3 doubled is 6, and 1 more is 7."""
    channel = Channel(precision=of(4.0, 0.0, torch.inf), bounds=of(3.0, 0.0, 0.0))
    after = channel.then(gain=2.0, precision=of(1.0, 1.0, 1.0), bounds=of(1.0, 1.0, 0.0))
    assert after.precision["w"].tolist() == [0.5, 0.0, 1.0]
    assert after.bounds["w"].tolist() == [7, 1, 0]
    assert channel.then(gain=2.0).precision["w"].tolist() == [1, 0, torch.inf]
    assert channel.then(precision=of(0.0, 1.0, 0.0)).precision["w"].tolist() == [0, 0, 0]


def test_what_the_gradient_moment_does_is_kept():
    channel = Channel(moment=times(3)).then(times(2), precision=ONES)
    assert channel.moment(ONES)["w"].tolist() == [3, 3, 3]


def test_victims_differ_in_tensors_only():
    """Under ``vmap`` over victims, as attacks use it, and one by one."""
    each = [Channel().then(times(2)).then(plus, known=of(v, v, v), bounds=of(v, v, v)) for v in (1.0, 5.0)]
    stacked = Channel.stack(each)
    raw = {"w": torch.rand(2, 3, generator=torch.Generator().manual_seed(0))}
    together = vmap(stacked.apply)(raw, stacked.known)["w"]
    assert torch.equal(vmap(stacked)(raw, stacked.known)["w"], together)
    for v, channel in enumerate(each):
        assert torch.equal(channel({"w": raw["w"][v]})["w"], together[v])
    assert stacked.bounds["w"].tolist() == [[1] * 3, [5] * 3]
    slope = vmap(grad(lambda t, k: stacked(t, k)["w"].sum()))(raw, stacked.known)
    assert slope["w"].tolist() == [[2] * 3] * 2


def test_what_differs_must_be_handed_over():
    stacked = Channel.stack([Channel().then(plus, known=of(v, v, v)) for v in (1.0, 5.0)])
    with pytest.raises(KeyError):
        stacked.apply(ONES)


def test_what_is_additive_may_be_told_of_a_part():
    tensors = {"a": torch.ones(2), "b": torch.ones(3)}
    noisy = Channel(precision=tensors, bounds={k: 2 * t for k, t in tensors.items()})
    assert noisy.additive
    assert list(noisy.of({"b"}).precision) == list(noisy.of({"b"}).bounds) == ["b"]
    assert Channel().of({"b"}).precision is None
    assert not noisy.then(lambda t: t).additive
    assert not Channel(moment=lambda t: t).additive
