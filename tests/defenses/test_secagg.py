"""Secure aggregation: the masked sum is the sum, one masked vector is noise, dropouts down to a threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Update
from medpfl.defenses import SecAggPlus
from medpfl.defenses.masking import Masks, ring
from medpfl.federated.server import aggregate, observe


def updates(count=4, size=50, scale=1.0, seed=0, samples=None):
    draw = torch.Generator().manual_seed(seed)
    return [
        Update(
            {"w": scale * torch.randn(size, 2, generator=draw), "b": scale * torch.randn(3, generator=draw)},
            "difference",
            {"mean": torch.randn(2, generator=draw), "steps": torch.tensor(7)},
            (samples or [10 * (i + 1) for i in range(count)])[i],
        )
        for i in range(count)
    ]


def draws(seed=5):
    return torch.Generator().manual_seed(seed)


def flat(update):
    return torch.cat([t.flatten() for t in (*update.tensors.values(), update.buffers["mean"])]).double()


@pytest.mark.slow
@given(
    clients=st.integers(3, 9),
    shares=st.sampled_from([None, 3, 5]),
    dropouts=st.integers(0, 1),
    seed=st.integers(0, 99),
    modulus=st.sampled_from([2**32, 2**40, 10**9 + 7]),
)
@settings(max_examples=40)
def test_the_unmasked_sum_is_the_sum_of_the_integers(clients, shares, dropouts, seed, modulus):
    sent = updates(clients, 5, seed=seed)
    defense = SecAggPlus(2, shares, dropouts=dropouts, modulus=modulus)
    exchange = defense.exchange(sent, draws(seed))
    again = draws(seed)
    integers = [defense.quantized(update, again) for update in sent]
    stayed = [i for i in range(clients) if i not in exchange.dropped]
    assert len(exchange.dropped) == dropouts
    assert sorted(exchange.masked) == stayed
    total = sum(integers[i] for i in stayed)
    weights = total[0].item() / 2**22
    values = (total[1:].double() * 16 / 2**22 - 8 * len(stayed)) / weights
    assert torch.allclose(flat(exchange.mean), values.float().double(), atol=1e-9)


def test_without_rounding_it_is_the_servers_weighted_mean():
    from medpfl.core.types import Weights

    sent = updates(scale=0.01)
    defense = SecAggPlus(levels=2**40, modulus=2**48, max_weight=100.0)
    (mean,), _ = defense.aggregate(sent, {}, draws())
    zero = Weights({k: torch.zeros_like(t) for k, t in sent[0].tensors.items()}, sent[0].buffers)
    plain = aggregate(zero, sent)
    for name, value in plain.parameters.items():
        assert torch.allclose(mean.tensors[name], value, atol=1e-8)
    assert torch.allclose(mean.buffers["mean"], plain.buffers["mean"], atol=1e-6)
    assert (mean.buffers["steps"].item(), mean.num_samples, mean.kind) == (7, 100, "difference")


def test_rounding_has_no_bias_and_the_size_that_max_weight_sets():
    """The mean's error is one rounding step per client, over the sum of weights: large weights round coarsely."""
    sent = updates(samples=[10] * 4)
    truth = torch.stack([flat(u) for u in sent]).mean(0)
    errors = {}
    for heaviest in (10.0, 1000.0):
        runs = torch.stack([flat(SecAggPlus(max_weight=heaviest).exchange(sent, draws(s)).mean) for s in range(60)])
        errors[heaviest] = (runs - truth).square().mean().sqrt().item()
        assert ((runs.mean(0) - truth).abs() < 6 * runs.std(0) / 60**0.5 + 1e-6).all()
    step = 16 / 2**22
    assert errors[1000.0] == pytest.approx(step * (4 / 6) ** 0.5 / 0.04, rel=0.1)
    assert errors[1000.0] > 50 * errors[10.0]


def test_coordinates_are_clipped_after_weighting():
    sent = updates(2, scale=1e6, samples=[1000, 1000])
    mean = SecAggPlus().exchange(sent, draws()).mean.tensors["w"]
    assert mean.unique().tolist() == pytest.approx([-8, 0, 8], abs=1e-4)


def one_masked(update, seed, client=0):
    others = updates(3, seed=9)
    return SecAggPlus().exchange([update, *others], draws(seed)).masked[client]


@pytest.mark.slow
@pytest.mark.parametrize("modulus", [2**32, 10**9 + 7])
def test_one_masked_vector_is_uniform_whatever_the_update(modulus):
    for scale in (0.0, 1e-3, 1e6):
        for shares in (None, 3):
            sent = updates(4, 20_000, scale)
            seen = SecAggPlus(2, shares, modulus=modulus).exchange(sent, draws()).masked
            for vector in seen.values():
                values = vector.values.double().numpy() / modulus
                assert stats.kstest(values, "uniform").pvalue > 1e-3
                low = np.bincount(vector.values.numpy() % 16, minlength=16)
                assert stats.chisquare(low).pvalue > 1e-3
            pair = np.corrcoef(seen[0].values.double().numpy(), seen[1].values.double().numpy())[0, 1]
            assert abs(pair) < 5 / 200
            if scale:
                sought = np.corrcoef(seen[0].values[1:].double().numpy(), flat(sent[0]).numpy())[0, 1]
                assert abs(sought) < 5 / 200


def test_the_same_update_is_masked_anew_in_every_round():
    update = updates(1)[0]
    one, again, other = (one_masked(update, seed) for seed in (1, 1, 2))
    assert torch.equal(one.values, again.values)
    assert (one.values == other.values).double().mean() < 0.05
    assert (one.num_samples, one.modulus) == (10, 2**32), "the number of samples is in clear"


def test_the_sum_of_fewer_than_all_stays_masked():
    """With three of four clients, the server's sum is uniform too: pairs with the fourth do not cancel."""
    sent = updates(4, 20_000, 0.0)
    seen = SecAggPlus().exchange(sent, draws()).masked
    three = sum(seen[i].values for i in range(3)) % 2**32
    assert stats.kstest(three.double().numpy() / 2**32, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("clients", "shares", "size"), [(7, 3, 3), (7, 5, 5), (4, 4, 4), (5, 9, 5)])
def test_the_ring(clients, shares, size):
    around = ring(clients, shares, draws())
    assert [len(own) for own in around] == [size] * clients
    assert all(i in own for i, own in enumerate(around))
    assert all(i in around[j] for i, own in enumerate(around) for j in own)


def test_pairwise_masks_cancel_and_own_masks_do_not():
    masks = Masks(ring(5, 3, draws()), 100, 1000, draws(1))
    left = masks.left(range(5))
    assert torch.equal(sum(masks.of(i) for i in range(5)) % 1000, left)
    assert len(left.unique()) > 50
    assert all(0 <= int(m) < 1000 for m in left)


def test_too_many_dropouts_lose_the_round():
    sent = updates(5)
    mean = SecAggPlus(threshold=3, dropouts=2).exchange(sent, draws()).mean
    assert mean.num_samples < 150
    with pytest.raises(InputError, match=r"2 of the 5 clients .* stayed, but 3 are needed: .* the round is lost"):
        SecAggPlus(threshold=3, dropouts=3).exchange(sent, draws())
    with pytest.raises(InputError, match=r"0 of the 5 clients"):
        SecAggPlus(dropouts=9).exchange(sent, draws())


def test_an_audit_of_one_client_is_refused():
    sent = type("Round", (), {"sent": updates(1)[0]})
    with pytest.raises(InputError, match=r"SecAggPlus\(threshold=2\): the server gets a sum .* see receive_sums"):
        observe(
            torch.nn.Identity(), None, Plan(), [sent], ThreatModel(),
            defense=SecAggPlus(), image_shape=(1, 2, 2), num_classes=2,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda v=v: SecAggPlus(threshold=v), "threshold is") for v in (0, 1, 2.0)),
        (lambda: SecAggPlus(3, 3), "less than shares"),
        *((lambda v=v: SecAggPlus(2, v), "shares is") for v in (1, 2, 4, 3.0)),
        *((lambda v=v: SecAggPlus(clip=v), "clip is") for v in (0, -1.0, float("inf"))),
        *((lambda v=v: SecAggPlus(max_weight=v), "max_weight is") for v in (0, float("nan"))),
        *((lambda v=v: SecAggPlus(levels=v), "levels and modulus") for v in (1, 2**32, 8.0)),
        (lambda: SecAggPlus(modulus=2**49), "levels and modulus"),
        (lambda: SecAggPlus(dropouts=-1), "dropouts is -1"),
        (lambda: SecAggPlus().exchange(updates(1), draws()), "two clients or more"),
        (lambda: SecAggPlus(modulus=2**24).exchange(updates(5), draws()), "do not fit below"),
        (lambda: SecAggPlus().exchange(updates(2, samples=[1, 0]), draws()), "client 1 sends num_samples 0"),
        (lambda: SecAggPlus().exchange(updates(2, samples=[1001, 1]), draws()), r"at most max_weight \(1000\)"),
        (lambda: SecAggPlus().exchange(updates(2, samples=[5, None]), draws()), "num_samples None"),
        (lambda: SecAggPlus(max_weight=1e9).exchange(updates(2), draws()), "at least max_weight / 4194304"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("levels", [2**22, 2**22 - 1])
@pytest.mark.parametrize("size", [1e-5, 1e-3, 1.0])
def test_the_told_variance_is_that_of_the_rounding_however_small_the_update(size, levels):
    """An update far below the step is mostly rounded to zero: a sixth of a squared step exceeds its variance by far."""
    defense, generator = SecAggPlus(levels=levels), torch.Generator().manual_seed(0)
    clients = [Update({"w": size * torch.randn(3000, generator=generator)}, num_samples=1) for _ in range(3)]
    (mean,), _ = defense.aggregate(clients, {}, generator)
    error = mean.tensors["w"] - torch.stack([u.tensors["w"] for u in clients]).mean(0)
    told = 1 / defense.disclose(mean, Plan()).precision["w"].double().mean()
    assert 0.3 < float(error.square().mean() / told) < 2.0


@pytest.mark.parametrize("size", [1e-5, 1e-3])
def test_the_told_variance_is_right_if_new_weights_are_rounded_as_flower_does(size):
    """The mean of new weights minus the old ones has the same rounding, though the weights are not near zero."""
    defense, generator = SecAggPlus(), torch.Generator().manual_seed(0)
    before = {"w": 0.1 * torch.randn(3000, generator=generator)}
    moved = [size * torch.randn(3000, generator=generator) for _ in range(3)]
    clients = [Update({"w": before["w"] + one}, num_samples=4) for one in moved]
    (mean,), _ = defense.aggregate(clients, {}, generator)
    sent = mean.replace({"w": mean.tensors["w"] - before["w"]})
    error = sent.tensors["w"] - torch.stack(moved).mean(0)
    told = 1 / defense.disclose(sent, Plan(batch_size=4)).precision["w"].double().mean()
    assert 0.3 < float(error.square().mean() / told) < 2.0


@pytest.mark.parametrize("levels", [200, 2**22])
def test_a_coordinate_that_every_client_clips_is_told_as_unknown(levels):
    defense, generator = SecAggPlus(clip=1.0, max_weight=10.0, levels=levels), torch.Generator().manual_seed(0)
    values = torch.tensor([0.0, 4.0, -4.9, 6.0, -50.0])  # the limit is 5: clip * max_weight / num_samples
    clients = [Update({"w": values * factor}, num_samples=2) for factor in (1.0, 1.01)]
    (mean,), _ = defense.aggregate(clients, {}, generator)
    assert mean.tensors["w"][-2:].tolist() == pytest.approx([5, -5])
    precision = defense.disclose(mean, Plan(batch_size=2)).precision["w"]
    assert (precision > 0).tolist() == [True, True, True, False, False]
