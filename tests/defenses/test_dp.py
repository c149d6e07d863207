"""DP-SGD and client-level DP against loops over single images, Opacus's optimizer, and closed forms."""

from __future__ import annotations

import builtins
import math
import warnings
from dataclasses import replace

import pytest
import torch
from scipy import optimize, stats
from torch import nn
from torch.nn import functional

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.privacy import accountant
from medpfl.core.privacy.accountant import Epsilon, epsilon
from medpfl.core.types import Batch, Update, Weights
from medpfl.defenses import DPSGD, ClientDP, Clipping, GaussianNoise
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare

FEDSGD = Plan(batch_size=6)
POISSON = Plan("FedAvg", 2, 6, epochs=2, learning_rate=0.3, momentum=0.5, sampling="poisson")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 3)).double()


def images(count=6):
    draw = torch.Generator().manual_seed(3)
    return Batch(torch.rand(count, 1, 8, 8, generator=draw, dtype=torch.float64), torch.arange(count) % 3)


def play(defense, plan, seed=5, model=None, batch=None):
    model = model or network()
    state, draw = defense.init(), torch.Generator().manual_seed(seed)
    batch = batch or images(plan.images)
    return client_round(prepare(model, plan), Weights.of(model), batch, plan, defense, state, draw)


def one_by_one(model, batch, chosen, size, defense, generator):
    """Compute a step's gradient with a loop over single images."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for i in chosen:
        loss = functional.cross_entropy(model(batch.images[i : i + 1]), batch.labels[i : i + 1])
        each = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in each))
        total = [t + g * min(1, defense.clip / norm) for t, g in zip(total, each, strict=True)]
    noise = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in total]
    return [(t + defense.noise * defense.clip * n) / size for t, n in zip(total, noise, strict=True)]


@pytest.mark.parametrize("clip", [0.01, 0.5, 1e3])
@pytest.mark.parametrize("noise", [1e-9, 1.0])
def test_one_gradient_is_a_loop_over_single_images(clip, noise):
    defense = DPSGD(clip, noise)
    sent = play(defense, FEDSGD).sent.tensors
    slow = one_by_one(network(), images(), range(6), 6, defense, torch.Generator().manual_seed(5))
    for one, other in zip(sent.values(), slow, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("plan", [POISSON, replace(POISSON, sampling="shuffle")], ids=lambda p: p.sampling)
def test_a_round_is_a_loop_over_steps_and_single_images(plan):
    defense, model = DPSGD(0.4, 0.3), network()
    played = play(defense, plan)
    noise = torch.Generator().manual_seed(5)
    if plan.sampling == "poisson":
        chosen = [row.nonzero()[:, 0].tolist() for row in torch.rand(6, 6, generator=noise) < 1 / 3]
        assert {len(c) for c in chosen} > {2}, "sizes differ"
    else:
        chosen = [c.tolist() for _ in range(2) for c in torch.randperm(6, generator=noise).split(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    for step in chosen:
        for p, g in zip(model.parameters(), one_by_one(model, images(), step, 2, defense, noise), strict=True):
            p.grad = g
        optimizer.step()
    for name, now in model.state_dict().items():
        assert torch.allclose(played.sent.tensors[name], now - network().state_dict()[name], atol=1e-12)
    assert played.state == {"steps": 6}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clip", [0.05, 0.7])
def test_it_is_the_gradient_of_opacus(clip):
    import opacus
    from opacus.optimizers import DPOptimizer

    model = opacus.GradSampleModule(network())
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=1.3,
        max_grad_norm=clip,
        expected_batch_size=6,
        generator=torch.Generator().manual_seed(5),
    )
    functional.cross_entropy(model(images().images), images().labels).backward()
    optimizer.pre_step()
    sent = play(DPSGD(clip, 1.3), FEDSGD).sent.tensors
    for name, parameter in network().named_parameters():
        theirs = model.get_parameter(f"_module.{name}").grad
        assert parameter.shape == theirs.shape
        assert torch.allclose(sent[name], theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_noise_is_added_once_a_step_whatever_the_batch():
    for count in (1, 16):
        plan = Plan(batch_size=count)
        clean = play(DPSGD(0.5, 1e-12), plan).sent
        noisy = [play(DPSGD(0.5, 2.0), plan, seed).sent for seed in range(50)]
        gaps = torch.stack([n.tensors["4.weight"] - clean.tensors["4.weight"] for n in noisy])
        assert gaps.std().item() == pytest.approx(2.0 * 0.5 / count, rel=0.03)


def test_empty_batches_are_noise_and_without_a_defense_nothing():
    plan = Plan("FedAvg", 1, 40, learning_rate=1.0, sampling="poisson")
    seed = next(s for s in range(99) if (torch.rand(1, 40, generator=torch.Generator().manual_seed(s)) >= 0.025).all())
    alone = replace(plan, algorithm="FedSGD")
    assert play(GaussianNoise(1e-30), alone, seed).raw.norm() == 0
    assert play(DPSGD(0.5, 1.0), alone, seed).raw.tensors["4.weight"].std().item() == pytest.approx(0.5, rel=0.15)
    assert all(t.isfinite().all() for t in play(DPSGD(0.5, 1.0), plan, seed).sent.tensors.values())


@pytest.mark.slow
def test_poisson_batches_are_divided_by_the_expected_size():
    plan = Plan("FedSGD", 2, 8, sampling="poisson")
    sent = [play(GaussianNoise(1e-30), plan, seed).raw.tensors["4.bias"] for seed in range(400)]
    drawn = [torch.rand(1, 8, generator=torch.Generator().manual_seed(s)) < 0.25 for s in range(400)]
    sizes = torch.tensor([int(d.sum()) for d in drawn])
    assert stats.chisquare(
        torch.bincount(sizes, minlength=9)[:5].numpy(),
        400 * stats.binom(8, 0.25).pmf(range(5)) * int((sizes < 5).sum()) / (400 * stats.binom(8, 0.25).cdf(4)),
    ).pvalue > 1e-3  # fmt: skip
    whole = play(GaussianNoise(1e-30), Plan(batch_size=8)).raw.tensors["4.bias"]
    spread = torch.stack(sent).std(0) / 20
    assert ((torch.stack(sent).mean(0) - whole).abs() < 4 * spread).all()


def test_batch_norm_is_refused_with_the_layer_and_what_to_put_there():
    model = nn.Sequential(nn.Conv2d(1, 48, 3), nn.BatchNorm2d(48), nn.Flatten(), nn.Linear(1728, 3)).double()
    with pytest.raises(InputError, match=r"layer '1': batch norm .* torch.nn.GroupNorm\(16, 48\) instead"):
        play(DPSGD(), FEDSGD, model=model)
    model[1] = nn.GroupNorm(16, 48).double()
    play(DPSGD(), FEDSGD, model=model)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_channel_knows_the_clipping_and_the_noise(batch_size):
    """With the disclosed moment in the same `local_update`, the target's error is noise of the disclosed size."""
    from medpfl.federated.local import local_update

    defense, plan = DPSGD(0.05, 0.1), Plan(batch_size=batch_size)
    channel = defense.disclose(play(defense, plan).sent, plan)
    model = network()
    told = local_update(
        prepare(model, plan), images(batch_size), plan, Weights.of(model), moment=channel.moment
    ).tensors  # fmt: skip
    assert (channel.moment is None) == (batch_size == 1)
    sent = [play(defense, plan, seed).sent.tensors["4.weight"] for seed in range(50)]
    gap = torch.stack(sent) - channel(told)["4.weight"]
    assert gap.var().item() == pytest.approx(1 / channel.precision["4.weight"][0, 0].item(), rel=0.05)
    assert defense.disclose(play(defense, plan).sent).precision["4.bias"].tolist() == pytest.approx(
        channel.precision["4.bias"].tolist()
    )


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_channel_knows_the_noise_of_several_steps(momentum):
    plan = Plan("FedAvg", 2, 6, epochs=2, learning_rate=0.01, momentum=momentum)
    defense = DPSGD(0.05, 1.0)
    sent = torch.stack([play(defense, plan, seed).sent.tensors["4.weight"] for seed in range(100)])
    told = defense.disclose(play(defense, plan).sent, plan)
    assert sent.var(0).mean().item() == pytest.approx(1 / told.precision["4.weight"][0, 0].item(), rel=0.1)
    assert defense.disclose(play(defense, plan).sent).precision is None, "nothing can be said without the plan"


def test_client_level_is_clipping_then_noise():
    update = Update({"w": torch.randn(400, generator=torch.Generator().manual_seed(0))})
    one = ClientDP(0.5, 2.0).update(update, {}, torch.Generator().manual_seed(1))[0]
    parts = Clipping(0.5) | GaussianNoise(1.0)
    other = parts.update(update, parts.init(), torch.Generator().manual_seed(1))[0]
    assert torch.equal(one.tensors["w"], other.tensors["w"])
    assert ClientDP(0.5, 2.0).disclose(one).precision["w"][0] == 1


def closed(noise, times, delta):
    """Return the epsilon of composed Gaussian mechanisms: mu = sqrt(times) / noise (Balle and Wang 2018, theorem 8)."""
    mu = math.sqrt(times) / noise

    def gap(eps):
        log_second = eps + stats.norm.logcdf(-mu / 2 - eps / mu)
        return stats.norm.cdf(mu / 2 - eps / mu) - math.exp(log_second) - delta

    return optimize.brentq(gap, 0, 1000)


SETTINGS = [(1.0, 0.125, 100), (5.0, 0.01, 1000), (0.8, 0.05, 50), (2.0, 1.0, 10), (20.0, 1.0, 1), (10.0, 0.01, 100)]


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "rate", "steps"), SETTINGS)
def test_both_accountants_agree_within_two_percent(noise, rate, steps):
    spent = epsilon(noise, rate, steps, 1e-5)
    assert spent.prv == pytest.approx(spent.pld, rel=0.02)
    if rate == 1:
        assert spent.value == pytest.approx(closed(noise, steps, 1e-5), rel=0.02)


@pytest.mark.slow
def test_what_is_spent_counts_the_rounds_that_were_seen():
    shuffled = replace(POISSON, sampling="shuffle")
    assert DPSGD(1.0, 4.0).spent(shuffled, 5, 1e-5).value == pytest.approx(closed(4.0, 5 * 2, 1e-5), rel=0.02)
    poisson = DPSGD(1.0, 4.0).spent(POISSON, 5, 1e-5)
    assert poisson == epsilon(4.0, 1 / 3, 5 * 6, 1e-5)
    assert ClientDP(3.0, 4.0).spent(POISSON, 7, 1e-5).value == pytest.approx(closed(4.0, 7, 1e-5), rel=0.02)
    one = Plan(batch_size=8)
    assert DPSGD(9.0, 4.0).spent(one, 3, 1e-6).value == pytest.approx(closed(4.0, 3, 1e-6), rel=0.02)


def test_an_epsilon_says_both():
    spent = Epsilon(3.185, 3.179, 1e-5)
    assert str(spent) == "epsilon 3.19 (PRV), 3.18 (PLD) at delta 1e-05"
    assert spent.value == 3.185


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda c=c, v=v, n=n: c(**{n: v}), f"{n} is {v}") for c in (DPSGD, ClientDP) for n in ("clip", "noise")
          for v in (0, -1.0, math.nan, math.inf)),
        (lambda: epsilon(0.0, 0.1, 1, 1e-5), "noise is 0.0"),
        (lambda: epsilon(1.0, 0.0, 1, 1e-5), "sampling rate is 0.0"),
        (lambda: epsilon(1.0, 1.1, 1, 1e-5), "sampling rate is 1.1"),
        (lambda: epsilon(1.0, 0.1, 0, 1e-5), "steps is 0"),
        (lambda: DPSGD().spent(FEDSGD, 0, 1e-5), "steps is 0"),
        (lambda: epsilon(1.0, 0.1, 1, 0.0), "delta is 0.0"),
        (lambda: epsilon(1.0, 0.1, 1, 1.0), "delta is 1.0"),
    ],
)  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("dp_accounting"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'medpfl\[dp\]'"):
        epsilon(1.0, 0.5, 1, 1e-5)


@pytest.mark.slow
def test_accountants_are_quiet():
    accountant._prv.cache_clear()
    accountant._pld.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epsilon(1.0, 1.0, 2, 1e-5)
