"""A composed defense's disclosure is right at the raw update: exactly where possible, on average under noise."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from medpfl.core.types import Channel, Update
from medpfl.defenses import QSGD, Clipping, GaussianNoise, RandomK, Signs, TopK

SIZE = 4000


def raw(seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return Update(
        {"w": scale * torch.randn(SIZE, generator=generator), "b": scale * torch.randn(50, generator=generator)}
    )


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors.values()])


def send(defense, update, seed=0):
    return defense.update(update, defense.init(), torch.Generator().manual_seed(1000 + seed))[0]


def look(defense, update, seed=0):
    """Return the sent coordinates, the channel's prediction from the raw ones, and the disclosed difference."""
    sent = send(defense, update, seed)
    return flat(sent.tensors), flat(defense.disclose(sent)(update.tensors)), defense.disclose(sent)


def test_clip_then_prune_then_noise():
    """Clipping is known, survivors have noise, and the others are below the threshold."""
    update = raw(scale=0.1)
    defense = Clipping(1.0) | TopK(0.1) | GaussianNoise(0.001)
    sent, through, channel = look(defense, update)
    assert through.norm().item() == pytest.approx(1.0, rel=1e-5)
    kept = flat(channel.bounds) == 0
    assert int(kept.sum()) == 405
    assert flat(channel.precision).unique().tolist() == pytest.approx([1e6])
    assert (sent - through)[kept].std().item() == pytest.approx(0.001, rel=0.15)
    beyond = ((sent - through).abs() - flat(channel.bounds))[~kept].clamp(min=0)
    assert beyond.square().mean() < 0.001**2
    assert flat(channel.bounds).max() < 1.2 * through[kept].abs().min() + 0.003


@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0])
def test_noise_then_clip_shrinks_by_both(sigma):
    """The raw update is scaled by ``C / sqrt(|x|^2 + d sigma^2)``, not by ``C / |x|``."""
    update, defense = raw(), GaussianNoise(sigma) | Clipping(1.0)
    sent = torch.stack([flat(send(defense, update, seed).tensors) for seed in range(200)])
    _, through, channel = look(defense, update)
    gain = (sent.mean(0) @ flat(update.tensors)) / flat(update.tensors).square().sum()
    told = (through @ flat(update.tensors)) / flat(update.tensors).square().sum()
    assert told.item() == pytest.approx(gain.item(), rel=0.02)
    variance = sent.var(0).mean().item()
    assert variance <= (1 / channel.precision["w"][0]).item() * 1.02
    if sigma > 1:
        assert variance == pytest.approx((1 / channel.precision["w"][0]).item(), rel=0.05)


def test_noise_below_the_clip_is_noise():
    update = raw(scale=1e-3)
    channel = look(GaussianNoise(1e-3) | Clipping(1.0), update)[2]
    assert channel.precision["w"][0].item() == pytest.approx(1e6)
    assert torch.equal(channel(update.tensors)["w"], update.tensors["w"])


@pytest.mark.parametrize("make", [TopK, RandomK])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_prune_then_clip_counts_the_survivors_only(make, scope):
    update, defense = raw(), make(0.1, scope) | Clipping(1.0, scope)
    sent, through, channel = look(defense, update)
    known = flat(channel.bounds) == 0 if channel.precision is None else flat(channel.precision) > 0
    assert int(known.sum()) == 405
    assert torch.allclose(through[known], sent[known], rtol=1e-4)
    if channel.bounds is not None:
        assert (sent - through).abs()[~known].max() <= flat(channel.bounds).max() * 1.0001


def test_prune_then_clip_differs_between_victims():
    defense = TopK(0.1) | Clipping(1.0)
    updates = [raw(seed, 1 + seed) for seed in range(3)]
    sent = [send(defense, update, 0) for update in updates]
    stacked = Channel.stack([defense.disclose(s) for s in sent])
    together = vmap(stacked.apply)(dict(Update.stack(updates).tensors), stacked.known)
    for v, one in enumerate(sent):
        kept = one.tensors["w"] != 0
        assert torch.allclose(together["w"][v][kept], one.tensors["w"][kept], rtol=1e-4)


def test_noise_then_random_coordinates():
    sent, through, channel = look(GaussianNoise(0.1) | RandomK(0.25), raw())
    kept = sent != 0
    assert (flat(channel.precision)[~kept] == 0).all()
    assert (sent - through)[kept].var().item() == pytest.approx(1 / flat(channel.precision)[kept][0].item(), rel=0.1)
    assert flat(channel.precision)[kept][0].item() == pytest.approx(1 / (16 * 0.01), rel=1e-2)


def test_quantization_and_noise_add_up_to_one_variance():
    one, other = GaussianNoise(0.5) | QSGD(256), QSGD(256)
    sent, through, channel = look(one, raw())
    alone = look(other, send(GaussianNoise(0.5), raw()))[2].precision["w"][0]
    assert channel.precision["w"][0].item() == pytest.approx(1 / (0.25 + 1 / alone.item()), rel=0.02)
    large = slice(0, SIZE)  # the small tensor has a step of its own
    assert (sent - through)[large].var().item() == pytest.approx(1 / channel.precision["w"][0].item(), rel=0.1)


def test_prune_then_quantize_keeps_the_bounds():
    sent, through, channel = look(TopK(0.5, "layer") | QSGD(4096), raw())
    pruned = flat(channel.bounds) > 0
    assert int(pruned.sum()) == 2025
    assert ((sent - through).abs() <= flat(channel.bounds) + 0.02)[pruned].all()


def test_prune_then_signs_takes_their_size_from_the_wire():
    sent, through, channel = look(TopK(0.1) | Signs(), raw())
    kept = sent != 0
    assert int(kept.sum()) == 405
    assert torch.allclose(through[kept], sent[kept], rtol=0.02)
    assert (through[~kept] == 0).all()
    assert (channel.precision, channel.bounds) == (None, None)


def test_three_noises_and_a_server():
    defense = GaussianNoise(0.3) | GaussianNoise(0.4) | GaussianNoise(9.0, where="server")
    assert look(defense, raw())[2].precision["b"][0].item() == pytest.approx(4.0)
    assert (GaussianNoise(9.0, where="server").where, defense.where) == ("server", "client")
