"""Every member of ``defenses.__all__`` keeps what the role and its own docstring promise. One row a defense."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.func import vmap

from medpfl import defenses
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.spec import build, registry
from medpfl.core.types import Batch, Channel, Update, Weights
from medpfl.defenses import (
    DPSGD,
    PRECODE,
    QSGD,
    ClientDP,
    Clipping,
    GaussianNoise,
    HomomorphicAggregation,
    LaplaceNoise,
    Mixup,
    NoDefense,
    Outpost,
    RandomK,
    SecAggPlus,
    Signs,
    Soteria,
    TopK,
)
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare

DRAWS = 400


def sends(defense, update, count=1):
    """What it makes of an update, `count` times with noise of its own: (count, size)."""
    generator = torch.Generator().manual_seed(7)
    sent = [defense.update(update, defense.init(), generator)[0] for _ in range(count)]
    return torch.stack([flat(s) for s in sent])


def flat(update):
    return torch.cat([t.double().flatten() for t in update.tensors.values()])


def unbiased(defense, raw):
    sent, scale = sends(defense, raw, DRAWS), flat(raw).norm()
    spread = (sent - flat(raw)).square().sum(1).mean().sqrt() / DRAWS**0.5
    assert (sent.mean(0) - flat(raw)).norm() < 2 * spread
    assert spread > 1e-3 * scale, "the test can tell"


def keeps(share, exact=True):
    def promise(defense, raw):
        (sent,) = sends(defense, raw)
        kept = sent != 0
        assert int(kept.sum()) == round(share * len(sent))
        if exact:
            assert torch.equal(sent[kept], flat(raw)[kept])
            assert sent[kept].abs().min() >= flat(raw)[~kept].abs().max()

    return promise


def norm_at_most(bound):
    def promise(defense, raw):
        assert sends(defense, raw).norm() <= bound * (1 + 1e-5)
        large = raw.replace({k: 1e3 * t for k, t in raw.tensors.items()})
        assert sends(defense, large).norm().item() == pytest.approx(bound, rel=1e-4)

    return promise


def deviation(scale):
    """The noise's standard deviation, in units of the update's root mean square where `scale` says so."""

    def promise(defense, raw):
        noise = sends(defense, raw, DRAWS) - flat(raw)
        unit = flat(raw).square().mean().sqrt() if defense.relative else 1.0
        assert noise.square().mean().sqrt().item() == pytest.approx(scale * float(unit), rel=0.02)
        assert abs(noise.mean()) < 4 * noise.std() / noise.numel() ** 0.5

    return promise


def noise_around(norm, std):
    def promise(defense, raw):
        sent = sends(defense, raw, DRAWS)
        assert (sent - sent.mean(0)).square().mean().sqrt().item() == pytest.approx(std, rel=0.02)
        shrunk = flat(raw) * min(1, norm / float(flat(raw).norm()))
        assert (sent.mean(0) - shrunk).square().mean().sqrt() < 1.2 * std / DRAWS**0.5

    return promise


def unchanged(defense, raw):
    assert torch.equal(sends(defense, raw)[0], flat(raw))


def sums_up(defense, raw):
    others = [raw.replace({k: c * t for k, t in raw.tensors.items()}) for c in (1.0, -3.0, 4.0)]
    ((total,), _) = defense.aggregate(others, defense.init(), torch.Generator().manual_seed(7))
    assert torch.allclose(flat(total), flat(raw) * 2 / 3, atol=1e-3)
    assert total.num_samples == 12


def sums_up_encrypted(defense, raw):
    pytest.importorskip("tenseal", reason="needs TenSEAL: pip install 'medpfl[he]'")
    sums_up(defense, raw)


def two_values(defense, raw):
    for tensor in defense.update(raw, defense.init(), torch.Generator())[0].tensors.values():
        assert tensor.abs().unique().numel() <= 2


@dataclass(frozen=True)
class Row:
    """A defense, whether it draws, and what it promises beyond the role.

    `promises` are functions of the defense and a raw update; `tolerance` is the error of what it discloses, as
    a share of the update's root mean square, where it names no noise.
    """

    defense: Defense
    random: bool = False
    promises: tuple[Callable[[Any, Update], None], ...] = ()
    tolerance: float = 0.01


ROWS = {
    "ClientDP": [Row(ClientDP(0.1, 0.5), True, (noise_around(0.1, 0.05),))],
    "Clipping": [Row(Clipping(0.1), promises=(norm_at_most(0.1),)), Row(Clipping(0.1, "layer"))],
    "DPSGD": [Row(DPSGD(0.5, 0.1), True), Row(DPSGD(100.0, 0.001), True)],
    "GaussianNoise": [
        Row(GaussianNoise(0.1), True, (unbiased, deviation(0.1))),
        Row(GaussianNoise(0.5, "norm"), True, (unbiased, deviation(0.5))),
        Row(GaussianNoise(0.5, "layer"), True, (unbiased, deviation(0.5))),
    ],
    "HomomorphicAggregation": [Row(HomomorphicAggregation(), promises=(unchanged, sums_up_encrypted))],
    "LaplaceNoise": [
        Row(LaplaceNoise(0.1), True, (unbiased, deviation(0.1 * 2**0.5))),
        Row(LaplaceNoise(0.5, "norm"), True, (unbiased, deviation(0.5 * 2**0.5))),
        Row(LaplaceNoise(0.5, "layer"), True, (unbiased, deviation(0.5 * 2**0.5))),
    ],
    "Mixup": [Row(Mixup(), True)],
    "NoDefense": [Row(NoDefense(), promises=(unchanged,))],
    "Outpost": [Row(Outpost(), True), Row(Outpost(0.1, 1.0, 0.0, 0.0), True)],
    "PRECODE": [Row(PRECODE(8), True)],
    "QSGD": [Row(QSGD(4), True, (unbiased,)), Row(QSGD(2, "global"), True, (unbiased,))],
    "RandomK": [
        Row(RandomK(0.25), True, (unbiased, keeps(0.25, exact=False))),
        Row(RandomK(0.25, "layer"), True, (unbiased,)),
        Row(RandomK(0.25, feedback=True), True, (keeps(0.25, exact=False),)),
    ],
    "SecAggPlus": [Row(SecAggPlus(), promises=(unchanged, sums_up))],
    "Signs": [
        Row(Signs(), promises=(two_values,), tolerance=0.25),
        Row(Signs("global", feedback=False), promises=(two_values,), tolerance=0.25),
    ],
    "Soteria": [Row(Soteria(0.25))],
    "TopK": [
        Row(TopK(0.25), promises=(keeps(0.25),)),
        Row(TopK(0.25, "layer")),
        Row(TopK(0.25, feedback=True), promises=(keeps(0.25),)),
    ],
}
ALL = [row for rows in ROWS.values() for row in rows]
PLANS = {
    "FedSGD": Plan(batch_size=4, mode="eval"),
    "FedAvg": Plan("FedAvg", 2, 4, epochs=2, mode="eval"),
}

each = pytest.mark.parametrize("row", ALL, ids=lambda row: repr(row.defense))
both = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(108, 2)).to(dtype)


def play(defense, plan, seed=0, dtype=torch.float32, state=None, model=None):
    generator = torch.Generator().manual_seed(seed)
    model = network(dtype) if model is None else model
    model, state = defense.model(model, defense.init() if state is None else state, generator)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    private = Batch(images, torch.tensor([0, 1, 1, 0]))
    return client_round(prepare(model, plan), Weights.of(model), private, plan, defense, state, generator)


def same(one, other):
    """Whether two trees of mappings, tensors and numbers are equal."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def stored(state):
    """The state after a checkpoint: tensors in safetensors, the rest in JSON; never pickled."""
    tensors = {}

    def outline(value, path):
        if isinstance(value, Mapping):
            return {str(key): outline(inner, f"{path}/{key}") for key, inner in value.items()}
        if isinstance(value, torch.Tensor):
            tensors[path] = value.contiguous()
            return {"tensor": path}
        return value

    text, blob = json.dumps(outline(state, "")), save(tensors)
    return json.loads(text, object_hook=lambda d: load(blob)[d["tensor"]] if d.keys() == {"tensor"} else d)


def test_every_defense_has_a_row():
    assert sorted(ROWS) == sorted(defenses.__all__)
    assert all(type(row.defense).__name__ == name for name, rows in ROWS.items() for row in rows)


@each
@both
def test_it_does_what_it_promises(row, plan):
    raw = play(NoDefense(), plan).raw
    for promise in row.promises:
        promise(row.defense, raw)


@each
@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_names_shapes_and_dtypes_stay(row, plan, dtype):
    played = play(row.defense, plan, dtype=dtype)
    assert list(played.sent.tensors) == list(played.raw.tensors)
    for name, sent in played.sent.tensors.items():
        raw = played.raw.tensors[name]
        assert (sent.shape, sent.dtype, sent.device) == (raw.shape, dtype, raw.device)
        assert sent.isfinite().all()


@each
@both
def test_what_else_is_sent_stays(row, plan):
    played = play(row.defense, plan)
    assert (played.sent.kind, played.sent.num_samples) == (played.raw.kind, 4)
    assert same(played.sent.buffers, played.raw.buffers)


@each
@both
def test_the_generator_is_the_only_source(row, plan):
    raw, defense = play(NoDefense(), plan).raw, row.defense
    model = network()
    before = torch.random.get_rng_state()
    one, again, other = (play(defense, plan, seed, model=model).sent for seed in (1, 1, 2))
    sent = [defense.update(raw, defense.init(), torch.Generator().manual_seed(1))[0].tensors for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(one.tensors, again.tensors)
    assert same(sent[0], sent[1])
    if plan.steps == 1:  # without an order of images, only the defense draws
        differs = [not torch.equal(one.tensors[k], other.tensors[k]) for k in one.tensors]
        assert any(differs) if row.random else not any(differs)


@each
@both
def test_what_is_handed_over_is_not_changed(row, plan):
    raw, defense = play(NoDefense(), plan).raw, row.defense
    state = play(defense, plan).state
    kept, was = copy.deepcopy(raw), copy.deepcopy(state)
    defense.update(raw, state, torch.Generator().manual_seed(0))
    defense.disclose(raw, plan)
    assert same(kept.tensors, raw.tensors)
    assert same(kept.buffers, raw.buffers)
    assert same(state, was)


@each
@both
def test_state_survives_a_checkpoint(row, plan):
    state = play(row.defense, plan).state
    assert same(stored(state), state)
    one, other = (play(row.defense, plan, 5, state=s) for s in (state, stored(state)))
    assert same(one.sent.tensors, other.sent.tensors)
    assert same(one.state, other.state)


@each
@both
@pytest.mark.parametrize("first", [True, False])
def test_composed_with_nothing_it_is_itself(row, plan, first):
    defense = row.defense
    composed = NoDefense() | defense if first else defense | NoDefense()
    played, alone = play(composed, plan, 3), play(defense, plan, 3)
    assert same(played.sent.tensors, alone.sent.tensors)
    assert composed.where == defense.where or defense.where == "server"
    assert same_channel(composed.disclose(alone.sent, plan), defense.disclose(alone.sent, plan), alone.raw.tensors)


def same_channel(one, other, raw):
    return same(dict(one(raw)), dict(other(raw))) and all(
        same(getattr(one, told), getattr(other, told)) for told in ("precision", "bounds", "known")
    )


@each
@both
@pytest.mark.parametrize("before", [True, False])
def test_it_composes(row, plan, before):
    others = (Clipping(1.0), TopK(0.5), GaussianNoise(0.01), LaplaceNoise(0.5, "norm"), RandomK(0.5), QSGD(8))
    for other in others:
        defense = other | row.defense if before else row.defense | other
        played = play(defense, plan)
        assert all(t.isfinite().all() for t in played.sent.tensors.values())
        fits(defense.disclose(played.sent, plan), played.sent, played.raw)


def fits(channel, sent, raw):
    for told in (channel.precision, channel.bounds):
        if told is not None:
            assert {k: t.shape for k, t in told.items()} == {k: t.shape for k, t in sent.tensors.items()}
            assert all(t.isfinite().all() and (t >= 0).all() for t in told.values())
    through = channel(raw.tensors)
    assert {k: (t.shape, t.dtype) for k, t in through.items()} == {
        k: (t.shape, t.dtype) for k, t in sent.tensors.items()
    }


@each
@both
def test_what_is_disclosed_fits_the_update_and_holds(row, plan):
    """At the raw update itself: the error beyond the bounds is noise of the disclosed precision, in the mean."""
    played = play(row.defense, plan)
    channel = row.defense.disclose(played.sent, plan)
    fits(channel, played.sent, played.raw)
    if not row.defense.acts("update"):
        return
    through, excess = channel(played.raw.tensors), []
    for name, sent in played.sent.tensors.items():
        bound = 0.0 if channel.bounds is None else channel.bounds[name]
        error = (through[name] - sent).abs() - bound * (1 + 1e-6) - 1e-6 * sent.abs().max()
        precision = 1 / error.new_tensor(row.tolerance) ** 2 * sent.square().mean().clamp(min=1e-12) ** -1
        if channel.precision is not None:
            precision = channel.precision[name]
            error = torch.where(precision > 1e10, error - 1e-5 * sent.abs().max(), error)
        excess.append((error.clamp(min=0).square() * precision).flatten())
    assert torch.cat(excess).mean() < 1.5


@each
@both
def test_channels_of_victims_stack(row, plan):
    played = [play(row.defense, plan, seed) for seed in range(3)]
    channels = [row.defense.disclose(p.sent, plan) for p in played]
    stacked, raw = Channel.stack(channels), Update.stack([p.raw for p in played]).tensors
    together = vmap(stacked)(raw, stacked.known) if stacked.known else vmap(stacked)(raw)
    for v, (channel, one) in enumerate(zip(channels, played, strict=True)):
        for name, through in channel(one.raw.tensors).items():
            assert torch.allclose(together[name][v], through, atol=1e-6)


@each
def test_spec_both_ways(row):
    assert build(repr(row.defense), registry(defenses), "defense") == row.defense
    assert isinstance(row.defense, Defense)


@each
def test_its_docstring_says_what_it_promises(row):
    text = type(row.defense).__doc__ or ""
    assert len(text) > 300 or type(row.defense) is NoDefense
    if type(row.defense) is not NoDefense:
        assert "romises" in text
        assert "reaks" in text or "No privacy" in text


@each
@both
def test_an_update_of_zeros_and_a_bare_one_are_survived(row, plan):
    raw, defense = play(NoDefense(), plan).raw, row.defense
    for update in (
        raw.replace({k: torch.zeros_like(t) for k, t in raw.tensors.items()}),
        replace(raw, buffers=None, num_samples=None),
    ):
        sent, _ = defense.update(update, defense.init(), torch.Generator().manual_seed(0))
        assert all(t.isfinite().all() for t in sent.tensors.values())
        fits(defense.disclose(sent, plan), sent, update)
