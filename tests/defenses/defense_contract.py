"""The contract that every defense must keep; `CONTRIBUTING.md` describes it. A row is a defense and its properties."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.func import vmap

from medpfl.auditing.probe.disclosure import probe
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.privacy.tradeoff import Mechanism
from medpfl.core.roles import UNITS, Defense
from medpfl.core.spec import build, summary
from medpfl.core.types import Batch, Channel, Update, Weights
from medpfl.defenses import (
    QSGD,
    Clipping,
    GaussianNoise,
    HomomorphicAggregation,
    LaplaceNoise,
    NoDefense,
    RandomK,
    TopK,
)
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare
from medpfl.inputs.parts import defenses_of
from medpfl.models import MLP
from tests.contract import every


@dataclass(frozen=True)
class Row:
    """A defense, whether it draws random numbers, and its promises beyond the role.

    `promises` are functions of the defense and a raw update. `tolerance` is the disclosure's error where it names no
    noise, as a share of the update's root mean square. `buffers` is True if it changes the buffers too.
    """

    defense: Defense
    random: bool = False
    promises: tuple[Callable[[Any, Update], None], ...] = ()
    tolerance: float = 0.01
    buffers: bool = False


def parameter(value: Any, *parts: Defense) -> Any:
    """Return a test's parameter, marked as an extra if a defense needs a package beyond the core set."""
    marks = [pytest.mark.extra] if any(isinstance(part, HomomorphicAggregation) for part in parts) else []
    return pytest.param(value, marks=marks, id=repr(parts[0]))


PLANS = {
    "FedSGD": Plan(batch_size=4, mode="eval"),
    "FedAvg": Plan("FedAvg", 2, 4, epochs=2, mode="eval"),
}


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
    """Return True if two trees of mappings, tensors and numbers are equal."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def stored(state):
    """Return the state after a checkpoint: tensors in safetensors, the rest in JSON, nothing pickled."""
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


def check_names_shapes_and_dtypes_stay(row, plan):
    for dtype in (torch.float32, torch.float64):
        played = play(row.defense, plan, dtype=dtype)
        assert list(played.sent.tensors) == list(played.raw.tensors)
        for name, sent in played.sent.tensors.items():
            raw = played.raw.tensors[name]
            assert (sent.shape, sent.dtype, sent.device) == (raw.shape, dtype, raw.device)
            assert sent.isfinite().all()


def check_what_else_is_sent_stays(row, plan):
    played = play(row.defense, plan)
    sent, raw = played.sent.buffers, played.raw.buffers
    assert (played.sent.kind, played.sent.num_samples) == (played.raw.kind, 4)
    assert {k: (t.shape, t.dtype) for k, t in sent.items()} == {k: (t.shape, t.dtype) for k, t in raw.items()}
    assert row.buffers or same(sent, raw)


def check_the_generator_is_the_only_source(row, plan):
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


def check_what_is_handed_over_is_not_changed(row, plan):
    raw, defense = play(NoDefense(), plan).raw, row.defense
    state = play(defense, plan).state
    kept, was = copy.deepcopy(raw), copy.deepcopy(state)
    defense.update(raw, state, torch.Generator().manual_seed(0))
    defense.disclose(raw, plan)
    assert same(kept.tensors, raw.tensors)
    assert same(kept.buffers, raw.buffers)
    assert same(state, was)


def check_state_survives_a_checkpoint(row, plan):
    state = play(row.defense, plan).state
    assert same(stored(state), state)
    one, other = (play(row.defense, plan, 5, state=s) for s in (state, stored(state)))
    assert same(one.sent.tensors, other.sent.tensors)
    assert same(one.state, other.state)


def check_composed_with_nothing_it_is_itself(row, plan):
    defense = row.defense
    for composed in (NoDefense() | defense, defense | NoDefense()):
        played, alone = play(composed, plan, 3), play(defense, plan, 3)
        assert same(played.sent.tensors, alone.sent.tensors)
        assert composed.where == defense.where or defense.where == "server"
        assert same_channel(composed.disclose(alone.sent, plan), defense.disclose(alone.sent, plan), alone.raw.tensors)


def same_channel(one, other, raw):
    return same(dict(one(raw)), dict(other(raw))) and all(
        same(getattr(one, told), getattr(other, told)) for told in ("precision", "bounds", "known")
    )


def check_it_composes(row, plan):
    others = (Clipping(1.0), TopK(0.5), GaussianNoise(0.01), LaplaceNoise(0.5, "norm"), RandomK(0.5), QSGD(8))
    for defense in [pair for other in others for pair in (other | row.defense, row.defense | other)]:
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


def check_what_is_disclosed_fits_the_update_and_holds(row, plan):
    """At the raw update, the error beyond the bounds is noise with the disclosed precision, on average."""
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


def check_channels_of_victims_stack(row, plan):
    played = [play(row.defense, plan, seed) for seed in range(3)]
    channels = [row.defense.disclose(p.sent, plan) for p in played]
    stacked, raw = Channel.stack(channels), Update.stack([p.raw for p in played]).tensors
    together = vmap(stacked)(raw, stacked.known) if stacked.known else vmap(stacked)(raw)
    for v, (channel, one) in enumerate(zip(channels, played, strict=True)):
        for name, through in channel(one.raw.tensors).items():
            assert torch.allclose(together[name][v], through, atol=1e-6)


def check_spec_both_ways(row):
    kind = type(row.defense)
    assert isinstance(row.defense, Defense)
    assert kind.__dataclass_params__.frozen, "@dataclass(frozen=True, repr=False)"
    assert build(repr(row.defense), {kind.__name__: kind}, "defense") == row.defense
    assert kind() == kind(), "every argument has a default"


def check_its_docstring_says_what_it_promises(row):
    text, line = type(row.defense).__doc__ or "", summary(type(row.defense))
    assert 20 < len(line) < 120, "a line that medpfl list shows"
    assert line[0].isupper()
    assert line.endswith(".")
    if type(row.defense) is not NoDefense:
        assert len(text) > 300, "what it does to the update, by whom it was proposed, what it promises, what breaks it"
        assert "romises" in text
        assert "reaks" in text or "No privacy" in text


def check_its_differential_privacy(row, plan):
    """The privacy unit, and an epsilon that grows with the number of observed rounds."""
    defense = row.defense
    assert defenses_of([defense]), "the audit's own check of unit, mechanism and spent"
    if defense.unit is None:
        assert defense.promises(plan, 1, 1e-5) == {}
        return
    assert defense.unit in UNITS
    seen = defense.mechanism(plan, 1)
    assert seen is None or isinstance(seen, Mechanism)
    with suppress(InputError):  # too little noise, or no accountant: the report says so
        one, three = (defense.promises(plan, rounds, 1e-5)[defense.unit] for rounds in (1, 3))
        assert 0 < one <= three


def check_its_aggregation(row):
    """A round with three clients gives one mean, over the clients that stay."""
    defense = row.defense
    if not defense.acts("aggregate"):
        return
    raw = play(NoDefense(), PLANS["FedSGD"]).raw
    sent = [raw.replace({k: c * t for k, t in raw.tensors.items()}) for c in (1.0, -3.0, 4.0)]
    made = defense.exchange(sent, torch.Generator().manual_seed(7))
    assert {k: t.shape for k, t in made.mean.tensors.items()} == {k: t.shape for k, t in raw.tensors.items()}
    assert all(t.isfinite().all() for t in made.mean.tensors.values())
    assert defense.staying(3) == 3 - len(made.dropped)
    assert made.mean.num_samples == raw.num_samples * defense.staying(3)
    assert (defense.aggregation.messages == "masked") == bool(made.masked)
    for message in made.masked.values():
        assert defense.read(message, raw).tensors.keys() == raw.tensors.keys()


def check_what_it_discloses_holds(row):
    """Uses the probe that every audit runs. A defense may disclose nothing, and is then never found safe."""
    defense, plan = row.defense, Plan(batch_size=8, mode="eval")
    images = torch.rand(3, 8, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    batches = [Batch(own, torch.arange(8) % 4) for own in images]
    found = probe(defense, MLP((24,)).build((1, 12, 12), 4, 1), plan, batches, torch.Generator().manual_seed(0))
    assert found.problems == ()
    assert found.holds != found.silent


def check_an_update_of_zeros_and_a_bare_one_are_survived(row, plan):
    raw, defense = play(NoDefense(), plan).raw, row.defense
    for update in (
        raw.replace({k: torch.zeros_like(t) for k, t in raw.tensors.items()}),
        replace(raw, buffers=None, num_samples=None),
    ):
        sent, _ = defense.update(update, defense.init(), torch.Generator().manual_seed(0))
        assert all(t.isfinite().all() for t in sent.tensors.values())
        fits(defense.disclose(sent, plan), sent, update)


EVERY = every(
    (
        check_spec_both_ways,
        check_its_docstring_says_what_it_promises,
        check_its_aggregation,
        check_what_it_discloses_holds,
    ),
    (
        check_names_shapes_and_dtypes_stay,
        check_what_else_is_sent_stays,
        check_the_generator_is_the_only_source,
        check_what_is_handed_over_is_not_changed,
        check_state_survives_a_checkpoint,
        check_composed_with_nothing_it_is_itself,
        check_it_composes,
        check_what_is_disclosed_fits_the_update_and_holds,
        check_channels_of_victims_stack,
        check_an_update_of_zeros_and_a_bare_one_are_survived,
        check_its_differential_privacy,
    ),
    PLANS,
)
"""Checks of a defense's row, and what each takes beside it."""

OF_SETTINGS = every(
    (check_what_it_discloses_holds,),
    (
        check_names_shapes_and_dtypes_stay,
        check_the_generator_is_the_only_source,
        check_state_survives_a_checkpoint,
        check_what_is_disclosed_fits_the_update_and_holds,
        check_channels_of_victims_stack,
        check_an_update_of_zeros_and_a_bare_one_are_survived,
    ),
    PLANS,
)
"""The checks that depend on a defense's settings, for all rows of a class after its first."""
