"""A defense's five moments, composed: order, state and disclosure. And the metric role."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import operator
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar

import pytest
import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Aggregation, Attack, Composed, DataSource, Defense, Metric, Model, metric
from medpfl.core.types import Batch, Channel, Update, Weights
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare

MOMENTS = ("model", "batch", "gradient", "update", "aggregate")
PLAN = Plan("FedAvg", 2, 4, epochs=2, learning_rate=0.5)  # four steps of two images


@dataclass(frozen=True, repr=False)
class Shift(Defense):
    """Base for the five moments: adds `by` times the number of the call, counted from one."""

    by: float = 1.0

    def init(self):
        return {"calls": 0, "last": torch.zeros(())}

    def amount(self, state):
        new = {"calls": state["calls"] + 1, "last": torch.tensor(self.by * (state["calls"] + 1))}
        return float(new["last"]), new


class ModelShift(Shift):
    def model(self, value, state, generator):
        amount, state = self.amount(state)
        value = copy.deepcopy(value)
        with torch.no_grad():
            value[-1].bias += amount
        return nn.Sequential(value, nn.Identity()), state


class BatchShift(Shift):
    def batch(self, value, state, generator):
        amount, state = self.amount(state)
        return replace(value, labels=value.labels + int(amount)), state


class GradientShift(Shift):
    def gradient(self, value, state, generator):
        amount, state = self.amount(state)
        return {k: t + amount for k, t in value.items()}, state


class UpdateShift(Shift):
    def update(self, value, state, generator):
        amount, state = self.amount(state)
        return value.replace({k: t + amount for k, t in value.tensors.items()}), state


class UpdateDouble(Shift):
    def update(self, value, state, generator):
        amount, state = self.amount(state)
        return value.replace({k: t * (1 + amount) for k, t in value.tensors.items()}), state


class AggregateSum(Shift):
    where: ClassVar = "server"

    def aggregate(self, value, state, generator):
        amount, state = self.amount(state)
        total = {k: sum(u.tensors[k] for u in value) + amount for k in value[0].tensors}
        return [value[0].replace(total)], state


class Drawing(Defense):
    def update(self, value, state, generator):
        return value.replace(
            {k: t + torch.randn(t.shape, generator=generator) for k, t in value.tensors.items()}
        ), state


SHIFTS = {
    "model": ModelShift,
    "batch": BatchShift,
    "gradient": GradientShift,
    "update": UpdateShift,
    "aggregate": AggregateSum,
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))


def batch():
    return Batch(torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0]))


def generator():
    return torch.Generator().manual_seed(5)


def play(defense, state=None):
    state = defense.init() if state is None else state
    model, state = defense.model(network(), state, generator())
    return client_round(prepare(model, PLAN), Weights.of(model), batch(), PLAN, defense, state, generator())


def saved(state):
    """Return the state after a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def close(one, other):
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], atol=1e-6) for k in one)


def test_a_defense_changes_nothing_by_default():
    bare, seed, update = Defense(), generator(), Update({"w": torch.ones(2)})
    for moment, value in {
        "model": network(), "batch": batch(), "gradient": {}, "update": update, "aggregate": [update],
    }.items():  # fmt: skip
        after, state = getattr(bare, moment)(value, bare.init(), seed)
        assert after is value
        assert state == {}
        assert not bare.acts(moment)
    assert bare.where == "client"
    channel = bare.disclose(update)
    assert channel.apply(update.tensors) is update.tensors
    assert (channel.precision, channel.bounds) == (None, None)


@pytest.mark.parametrize("moment", MOMENTS)
def test_acts_at_what_it_overrides_and_nowhere_else(moment):
    one = SHIFTS[moment]()
    assert [m for m in MOMENTS if one.acts(m)] == [moment]
    composed = Shift() | one | Defense()
    assert [m for m in MOMENTS if composed.acts(m)] == [moment]
    assert not (Shift() | Shift()).acts(moment)


@pytest.mark.parametrize(("moment", "calls"), [("model", 1), ("batch", 1), ("gradient", 4), ("update", 1)])
def test_state_goes_round_by_round(moment, calls):
    defense = SHIFTS[moment]()
    first = play(defense)
    assert first.state["calls"] == calls
    assert float(first.state["last"]) == calls
    second = play(defense, saved(first.state))
    assert second.state["calls"] == 2 * calls
    assert defense.init()["calls"] == 0


def test_the_model_moment_is_before_the_round():
    played, plain = play(ModelShift(3.0)), play(Defense())
    assert set(played.sent.tensors) == {"0.1.weight", "0.1.bias"} != set(plain.sent.tensors)
    # A constant on every logit changes no softmax.
    assert torch.allclose(played.sent.tensors["0.1.weight"], plain.sent.tensors["1.weight"], atol=1e-6)


def test_the_batch_moment_is_what_it_trains_on():
    played = play(BatchShift(2.0))
    assert torch.equal(played.batch.labels, batch().labels + 2)
    other = client_round(
        prepare(network(), PLAN), Weights.of(network()), played.batch, PLAN, Defense(), {}, generator()
    )
    assert close(played.sent.tensors, other.sent.tensors)


def test_the_gradient_moment_is_inside_every_step():
    """If gradients stay equal, steps 1, 2, 3, 4 shift every coordinate by 1, 2, 3, 4 times the learning rate."""
    slow = replace(PLAN, learning_rate=1e-4)
    model, weights = prepare(network(), slow), Weights.of(network())
    defense = GradientShift(10.0)
    shifted = client_round(model, weights, batch(), slow, defense, defense.init(), generator()).sent.tensors
    plain = client_round(model, weights, batch(), slow, Defense(), {}, generator()).sent.tensors
    for name in plain:
        assert torch.allclose(shifted[name] - plain[name], torch.full_like(plain[name], -1e-4 * 100), rtol=1e-2)


def test_the_update_moment_is_on_what_leaves():
    played = play(UpdateShift(2.0))
    assert close(played.sent.tensors, {k: t + 2 for k, t in played.raw.tensors.items()})
    assert close(played.raw.tensors, play(Defense()).raw.tensors)
    assert (played.sent.num_samples, played.sent.kind) == (4, "difference")


def test_the_aggregate_moment_is_not_at_the_client():
    defense = AggregateSum(0.5)
    played = play(defense)
    assert played.state["calls"] == 0
    assert close(played.sent.tensors, play(Defense()).sent.tensors)
    updates = [Update({"w": torch.full((2,), v)}) for v in (1.0, 2.0, 4.0)]
    (total,), state = defense.aggregate(updates, defense.init(), generator())
    assert total.tensors["w"].tolist() == [7.5, 7.5]
    (total,), state = (defense | AggregateSum(1.0)).aggregate(updates, {"0": state, "1": Shift().init()}, generator())
    assert total.tensors["w"].tolist() == [9.0, 9.0]
    assert (state["0"]["calls"], state["1"]["calls"]) == (2, 1)


def test_parts_act_in_order():
    update = Update({"w": torch.ones(1)})
    for defense, result in (
        (UpdateShift(2.0) | UpdateDouble(2.0), 9.0),
        (UpdateDouble(2.0) | UpdateShift(2.0), 5.0),
        (UpdateDouble(2.0) | (UpdateShift(2.0) | UpdateDouble(1.0)), 10.0),
    ):
        sent, _ = defense.update(update, defense.init(), generator())
        assert sent.tensors["w"].item() == result
        assert update.tensors["w"].item() == 1.0


def test_all_moments_composed_are_the_moments_one_by_one():
    parts = [make(0.5) for make in SHIFTS.values()]
    composed = reduce(operator.or_, parts)
    model, state = composed.model(network(), composed.init(), generator())
    played = client_round(prepare(model, PLAN), Weights.of(model), batch(), PLAN, composed, state, generator())
    assert [played.state[str(i)]["calls"] for i in range(5)] == [1, 1, 4, 1, 0]
    assert close(played.sent.tensors, {k: t + 0.5 for k, t in played.raw.tensors.items()})
    again = play(composed, saved(played.state))
    assert [again.state[str(i)]["calls"] for i in range(5)] == [2, 2, 8, 2, 0]
    assert [float(again.state[str(i)]["last"]) for i in range(5)] == [1.0, 1.0, 4.0, 1.0, 0.0]


def test_two_of_a_kind_keep_states_apart():
    defense = UpdateShift(1.0) | UpdateShift(10.0)
    update, state = Update({"w": torch.zeros(1)}), defense.init()
    totals = []
    for _ in range(3):
        sent, after = defense.update(update, state, generator())
        assert after is not state
        state = saved(after)
        totals.append(sent.tensors["w"].item())
    assert totals == [11, 22, 33]
    assert state["0"].keys() == {"calls", "last"}
    assert json.loads(json.dumps({k: s["calls"] for k, s in state.items()})) == {"0": 3, "1": 3}


def test_moments_do_not_change_the_state_they_are_given():
    defense = UpdateShift() | GradientShift()
    state = defense.init()
    before = copy.deepcopy(state)
    play(defense, state)
    assert state == before


def test_the_generator_is_handed_to_every_part():
    defense, update = Drawing() | Drawing(), Update({"w": torch.zeros(4)})
    sent, _ = defense.update(update, defense.init(), generator())
    seed = generator()
    assert torch.equal(sent.tensors["w"], torch.randn(4, generator=seed) + torch.randn(4, generator=seed))


def test_composition_is_flat_associative_and_writes_itself():
    a, b, c = UpdateShift(2.0), UpdateDouble(), AggregateSum()
    assert (a | b) | c == a | (b | c) == Composed((a, b, c))
    assert repr(a | b) == "UpdateShift(by=2.0) | UpdateDouble()"


@pytest.mark.parametrize(
    ("parts", "where"),
    [
        ((AggregateSum(),), "server"),
        ((AggregateSum(), AggregateSum()), "server"),
        ((AggregateSum(), UpdateShift()), "client"),
        ((UpdateShift(), AggregateSum()), "client"),
        ((UpdateShift(),), "client"),
    ],
)
def test_where(parts, where):
    assert reduce(operator.or_, parts).where == where
    assert Composed(parts).where == where


@dataclass(frozen=True, repr=False)
class Promising(Defense):
    """A defense with an epsilon of its own."""

    epsilon: float = 1.0
    unit = "client"
    covers_buffers = True

    def mechanism(self, plan, rounds):
        return f"noise behind {self.epsilon}"

    def spent(self, plan, rounds, delta):
        return self.epsilon * rounds

    def account(self, size, rounds):
        return f"{self.epsilon} for {size} values"


@dataclass(frozen=True, repr=False)
class ForImages(Promising):
    """The same for an image, in the steps."""

    unit = "image"
    covers_buffers = False

    def gradient(self, value, state, generator):
        return value, state


@dataclass(frozen=True, repr=False)
class Summing(AggregateSum):
    """A sum whose protocol is its own."""

    aggregation = Aggregation("masked", ("num_samples",))

    def exchange(self, updates, generator):
        return len(updates)

    def staying(self, clients):
        return clients - 1

    def read(self, masked, like):
        return masked


def test_a_composition_says_what_its_parts_say():
    plain = UpdateShift() | UpdateDouble()
    assert (plain.unit, plain.covers_buffers, plain.mechanism(None, 1), plain.spent(None, 1, 0.1)) == (
        None,
        False,
        None,
        None,
    )
    assert (plain.account(3, 1), plain.aggregation, plain.staying(4)) == ("", Aggregation(), 4)
    one = ForImages(3.0) | UpdateShift()
    assert (one.unit, one.covers_buffers, one.mechanism(None, 2), one.spent(None, 2, 0.1)) == (
        "image",
        False,
        "noise behind 3.0",
        6.0,
    )
    two = UpdateShift() | Promising(3.0) | Promising(2.0)
    assert (two.unit, two.covers_buffers, two.spent(None, 2, 0.1)) == ("client", True, 4.0)
    assert two.account(7, 1) == "3.0 for 7 values; 2.0 for 7 values"
    with pytest.raises(InputError, match="2 mechanisms, and each holds by itself"):
        two.mechanism(None, 1)
    sums = UpdateShift() | Summing()
    assert (sums.aggregation, sums.exchange([1, 2], None), sums.staying(4), sums.read("m", None)) == (
        Summing.aggregation, 2, 3, "m",
    )  # fmt: skip
    with pytest.raises(InputError, match="2 of its parts sum over clients"):
        (sums | Summing()).staying(4)


def test_a_composition_with_several_units_has_no_single_one():
    mixed = ForImages(3.0) | Promising(2.0)
    for call in (lambda: mixed.unit, lambda: mixed.spent(None, 1, 0.1)):
        with pytest.raises(InputError, match=r"several units \(image, client\): ask a part"):
            call()
    disturbed = GradientShift() | ForImages(1.0) | Promising(2.0)
    assert (disturbed.unit, disturbed.spent(None, 1, 0.1)) == ("client", 2.0), (
        "another part changes the first's gradients"
    )


@dataclass(frozen=True, repr=False)
class Known(Defense):
    """A defense that discloses a given channel: ``raw * factor + offset``, a variance, a bound."""

    factor: float = 1.0
    offset: float = 0.0
    precision: tuple[float, ...] | None = None
    bound: float | None = None

    def disclose(self, sent, plan=None, before=None):
        return (before or Channel()).then(
            lambda tensors: {k: t * self.factor + self.offset for k, t in tensors.items()},
            precision=None if self.precision is None else {k: torch.tensor(self.precision) for k in sent.tensors},
            bounds=None if self.bound is None else {k: torch.full_like(t, self.bound) for k, t in sent.tensors.items()},
        )


SENT = Update({"w": torch.zeros(3), "b": torch.zeros(3)})


def test_known_changes_are_composed_in_order_and_differentiable():
    apply = (Known(2.0, 1.0) | Known(10.0, 3.0)).disclose(SENT).apply
    raw = torch.ones(3, requires_grad=True)
    out = apply({"w": raw})["w"]
    assert out.tolist() == [33, 33, 33]
    out.sum().backward()
    assert raw.grad.tolist() == [20, 20, 20]


def test_variances_add_up():
    channel = (Known(precision=(4.0, 0.0, 1.0)) | Known() | Known(precision=(2.0, 2.0, 0.0))).disclose(SENT)
    expected = torch.tensor([1 / (1 / 4 + 1 / 2), 0.0, 0.0])
    assert torch.allclose(channel.precision["w"], expected)
    assert torch.allclose(channel.precision["b"], expected)
    assert channel.bounds is None
    exact = (Known(precision=(torch.inf,) * 3) | Known(precision=(0.0, 2.0, 1e-38))).disclose(SENT).precision["w"]
    assert torch.allclose(exact, torch.tensor([0.0, 2.0, 1e-38]))
    assert (Known(precision=(0.0,) * 3) | Known(precision=(0.0,) * 3)).disclose(SENT).precision["w"].tolist() == [0] * 3


def test_bounds_add_up_and_silence_adds_nothing():
    channel = (Known(bound=0.5) | Known() | Known(bound=0.25)).disclose(SENT)
    assert channel.bounds["w"].tolist() == [0.75] * 3
    assert channel.precision is None
    silent = (Known() | Known()).disclose(SENT)
    assert (silent.precision, silent.bounds) == (None, None)


def test_other_roles_have_to_be_filled():
    for call, named in (
        (lambda: Attack()(None, generator()), r"the class Attack does not define __call__\(self, seen, generator\)"),
        (lambda: Model().build((1, 2, 2), 2, 0), "the class Model does not define build"),
        (DataSource().load, "the class DataSource does not define load"),
    ):
        with pytest.raises(InputError, match=named):
            call()
    model = nn.Identity()
    assert Attack().prepare(model) is model


def test_metrics_clamp_their_guess_unless_they_are_legacy():
    def level(guess, truth):
        """Return the guess's mean."""
        return guess.flatten(1).mean(1)

    guess, truth = torch.tensor([-1.0, 3.0]).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    new = metric(unit="dB", leak="lower", data_range=2.0)(level)
    old = metric(unit="", leak="higher", legacy=True)(level)
    assert new(guess, truth).tolist() == [0, 1]
    assert old(guess, truth).tolist() == [-1, 3]
    assert isinstance(new, Metric)
    assert (new.unit, new.leak, new.data_range, new.legacy) == ("dB", "lower", 2.0, False)
    assert (repr(new), new.__name__, new.__doc__) == ("level", "level", "Return the guess's mean.")
    with pytest.raises(dataclasses.FrozenInstanceError):
        new.unit = ""
