"""Wrong records are stopped with their cause named; right ones are accepted."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from medpfl.core.records.origin import Source
from medpfl.core.records.record import Record
from medpfl.core.records.truth import Truth
from medpfl.core.types import Update, Weights
from medpfl.recording.check import Case
from medpfl.recording.client import check_case
from medpfl.recording.folder import Neighbors
from medpfl.recording.record import make_record, state_of
from medpfl.recording.rounding import _coarse
from medpfl.recording.watching.watch import watch
from tests.recording.loops import loader, network, train

ONE, SEVERAL = 12, 4
"""Batch sizes that give one step an epoch, and three."""


class Site(NamedTuple):
    network: nn.Module
    record: Record
    truth: Truth

    def case(self, record: Record, **options) -> Case:
        return Case(self.network, record, options.pop("truth", self.truth), **options)


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(ONE, 1, 8, 8, generator=generator)
    return images, torch.randint(0, 3, (ONE,), generator=generator)


def site(batch, *, norm=True, seed=0, start=None, epochs=1, **settings) -> Site:
    model = network(norm)
    if start is not None:
        model.load_state_dict(start)
    before = state_of(model)
    with watch(model, keep=True) as seen:
        train(model, loader(*data(seed), batch, seed), epochs=epochs, **{"momentum": 0.0, **settings})
    return Site(model, make_record(before, state_of(model), seen), seen.truth())


def sent(record: Record, change) -> Record:
    return replace(record, update=record.update.replace(change(record.update.tensors)))


def planned(record: Record, **changes) -> Record:
    return replace(record, plan=replace(record.plan, **changes))


def after(record: Record) -> dict[str, torch.Tensor]:
    """Return the client's new state."""
    new = {k: record.weights.parameters[k] + t for k, t in record.update.tensors.items()}
    return {**new, **record.update.buffers}


def rate(batch, norm):
    own = site(batch, norm=norm)
    return own.case(planned(own.record, learning_rate=1.0)), r"the learning rate was 0.1, not 1 \(a factor of 0.1\)"


def more_epochs(batch, norm):
    own = site(batch, norm=norm, epochs=2)
    short = replace(own.truth, order=own.truth.order[:ONE])
    return own.case(planned(own.record, epochs=1), truth=short), "the client trained for 2 epochs, not 1"


def fewer_epochs(batch, norm):
    own = site(batch, norm=norm, epochs=1)
    return own.case(planned(own.record, epochs=2)), "the client trained for 1 epoch, not 2"


def momentum(batch, norm):
    own = site(batch, norm=norm, momentum=0.9, epochs=2)
    return own.case(planned(own.record, momentum=0.0)), "the momentum was 0.9, not 0"


def next_weights(batch, norm):
    own = site(batch, norm=norm)
    moved = after(own.record)
    weights = Weights({k: moved[k] for k in own.record.weights.parameters}, own.record.weights.buffers)
    return own.case(replace(own.record, weights=weights)), "the weights before the training are those of the next round"


def next_weights_of_two(batch, norm):
    """The next round's weights are a mean over two sites; that round's record lies beside this one."""
    own, other = site(batch, norm=norm), site(batch, norm=norm, seed=7)
    mean = {k: (t + after(other.record)[k]) / 2 for k, t in after(own.record).items()}
    wrong = Weights({k: mean[k] for k in own.record.weights.parameters}, own.record.weights.buffers)
    record = replace(own.record, weights=wrong)
    return own.case(record, others={"round-0001": own.record}), "those in 'round-0001' fit"


def next_weights_alone(batch, norm):
    case, _ = next_weights_of_two(batch, norm)
    sure = norm or batch == SEVERAL
    either = "the weights before the training are those of another round"
    return replace(case, others={}), either if sure else "weights (before the training )?are those of another round"


def mean_of_sites(batch, norm):
    own, other = site(batch, norm=norm), site(batch, norm=norm, seed=7)
    record = sent(own.record, lambda t: {k: (v + other.record.update.tensors[k]) / 2 for k, v in t.items()})
    return own.case(record, others={"other": other.record}), "the mean of several clients: that in 'other' is in it"


def mean_of_sites_alone(batch, norm):
    case, _ = mean_of_sites(batch, norm)
    return replace(case, others={}), "(probably|else) the update is the mean of several clients"


def sign(batch, norm):
    own = site(batch, norm=norm)
    return own.case(sent(own.record, lambda t: {k: -v for k, v in t.items()})), "the sign is flipped"


def weights(batch, norm):
    own = site(batch, norm=norm)
    new = after(own.record)
    return own.case(sent(own.record, lambda t: {k: new[k] for k in t})), "the new weights in place of their difference"


def subtracted(batch, norm):
    own = site(batch, norm=norm)
    old = own.record.weights.parameters
    return own.case(sent(own.record, lambda t: {k: v - old[k] for k, v in t.items()})), "taken for new weights"


def decay(batch, norm):
    own = site(batch, norm=norm, weight_decay=0.01)
    return own.case(planned(own.record, weight_decay=0.0)), "the weight decay was 0.01, not 0"


def odd_rate(batch, norm):
    own = site(batch, norm=norm, lr=0.137)
    return own.case(planned(own.record, learning_rate=0.1)), "the learning rate was about 0.137, not 0.1"


def classes(batch, norm):
    own = site(batch, norm=norm)
    turned = replace(own.truth, labels=(own.truth.labels + 1) % 3)
    return own.case(own.record, truth=turned), "the classes are in another order"


def pixels(batch, norm):
    own = site(batch, norm=norm)
    shifted = replace(own.truth, images=own.truth.images * 0.5 + 0.5)
    return own.case(own.record, truth=shifted), r"another range \(-1 to 1, as by Normalize"


WRONG = [
    rate, more_epochs, fewer_epochs, momentum, next_weights, next_weights_of_two, next_weights_alone, mean_of_sites,
    mean_of_sites_alone, sign, weights, subtracted, decay, odd_rate, classes, pixels,
]  # fmt: skip


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize(
    "batch", [ONE, pytest.param(SEVERAL, marks=pytest.mark.slow)], ids=["one step", "several steps"]
)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_record_is_stopped_with_its_cause(wrong, batch, norm):
    case, cause = wrong(batch, norm)
    check = check_case(case)
    assert check.verdict == "wrong", (check.difference, check.facts)
    assert check.cause is not None
    assert re.search(cause, str(check.cause)), check


def buffers_of(own: Site, change) -> Record:
    update = own.record.update
    return replace(own.record, update=replace(update, buffers={k: change(k, t) for k, t in update.buffers.items()}))


@pytest.mark.parametrize("batch", [ONE, SEVERAL], ids=["one step", "several steps"])
@pytest.mark.parametrize("earlier", [False, True], ids=["first round", "later round"])
def test_buffers_as_differences(batch, earlier):
    start = after(site(batch).record) if earlier else None
    own = site(batch, start=start, seed=3)
    old = own.record.weights.buffers
    check = check_case(own.case(buffers_of(own, lambda k, t: t - old[k])))
    assert check.verdict == "wrong"
    assert "the buffers are differences" in str(check.cause)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize(
    "batch", [ONE, SEVERAL, 5, 1], ids=["one step", "several steps", "smaller last batch", "single"]
)
@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.9, "nesterov": True}, {"epochs": 2}], ids=["", "nesterov", "2"]
)
def test_a_right_record_is_right(batch, settings, norm):
    if norm and batch == 1:
        batch = 2
    own = site(batch, norm=norm, **settings)
    check = check_case(own.case(own.record))
    assert (check.verdict, check.cause) == ("right", None)
    assert check.difference < 1e-6


def test_momentum_does_not_matter_in_a_single_step():
    own = site(ONE, momentum=0.9)
    assert check_case(own.case(planned(own.record, momentum=0.5))).verdict == "right"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_counters_as_floats(dtype):
    """FedAvg averages counters into floats."""
    own = site(SEVERAL, start=after(site(SEVERAL).record))

    def floats(tensors):
        return {k: t.to(dtype) if not t.is_floating_point() else t for k, t in tensors.items()}

    record = buffers_of(own, lambda k, t: t.to(dtype) if not t.is_floating_point() else t)
    record = replace(record, weights=Weights(record.weights.parameters, floats(record.weights.buffers)))
    record = record.cast({k: t.dtype for k, t in state_of(own.network).items()})
    assert check_case(own.case(record)).verdict == "right"


def test_the_mean_of_counters_is_named():
    own = site(SEVERAL)
    record = buffers_of(own, lambda k, t: t + 0.5)
    assert "average over several clients" in str(check_case(own.case(record)).cause)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_without_the_order_a_right_record_is_not_refused(norm):
    own = site(SEVERAL, norm=norm)
    check = check_case(own.case(own.record, truth=replace(own.truth, order=None)))
    assert check.verdict == "unverified"
    assert "the order of the images is unknown" in check.open[0]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [sign, weights], ids=["sign", "weights"])
def test_without_the_order_what_cannot_be_is_stopped(wrong):
    case, cause = wrong(SEVERAL, False)
    check = check_case(replace(case, truth=replace(case.truth, order=None)))
    assert check.verdict == "wrong"
    assert check.cause is not None
    assert re.search(cause, str(check.cause)), check


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [more_epochs, next_weights], ids=["epochs", "weights"])
def test_counters_show_the_steps_without_the_order(wrong):
    case, _ = wrong(SEVERAL, True)
    check = check_case(replace(case, truth=replace(case.truth, order=None)))
    assert check.verdict == "wrong"


def test_dropout_is_replayed_from_its_generators():
    model = network(drop=0.5)
    before = state_of(model)
    with watch(model, keep=True) as seen:
        train(model, loader(*data(), SEVERAL))
    own = Site(model, make_record(before, state_of(model), seen), seen.truth())
    assert check_case(own.case(own.record)).verdict == "right"
    blind = check_case(own.case(own.record, truth=replace(own.truth, generators=None)))
    assert blind.verdict == "unverified"
    assert "dropout's draws" in blind.open[0]


def test_a_gradient():
    model = network()
    images, labels = data()
    nn.functional.cross_entropy(model.eval()(images), labels).backward()
    from medpfl import Plan

    tensors = {k: p.grad for k, p in model.named_parameters()}
    record = Record(Update(tensors), Plan(batch_size=ONE, mode="eval", sends=()), Weights.of(model))
    assert check_case(Case(model, record, Truth(images, labels))).verdict == "right"
    turned = replace(record, plan=Plan(batch_size=ONE, sends=()))
    assert "eval mode while the client trained" in str(check_case(Case(model, turned, Truth(images, labels))).cause)
    stepped = replace(record, plan=Plan("FedAvg", ONE, mode="eval"), update=replace(record.update, kind="difference"))
    assert "the gradient was recorded as a weight difference" in str(
        check_case(Case(model, stepped, Truth(images, labels))).cause
    )


@pytest.mark.slow
def test_an_update_that_a_filter_changed_is_not_refused():
    own = site(ONE)
    noisy = sent(own.record, lambda t: {k: v + 0.01 * v.std() * torch.randn_like(v) for k, v in t.items()})
    assert check_case(own.case(noisy)).verdict == "wrong"
    check = check_case(own.case(replace(noisy, filters=("PercentilePrivacy(percentile=10)",))))
    assert check.verdict == "unverified"
    assert "PercentilePrivacy(percentile=10) changed the update after it" in check.open[0]
    assert check_case(own.case(replace(own.record, filters=("Nothing()",)))).verdict == "right"


def test_neighbors_are_records_of_the_same_model(tmp_path):
    own, other = site(ONE), site(ONE, seed=7)
    own.record.save(tmp_path / "a.safetensors")
    other.record.save(tmp_path / "b.safetensors")
    site(ONE, norm=False).record.save(tmp_path / "c.safetensors")
    (tmp_path / "d.safetensors").write_bytes(b"junk")
    found = dict(Neighbors(tmp_path / "a.safetensors", own.record).items())
    assert list(found) == ["b.safetensors"]


def rounded(device: str, **settings) -> tuple[Site, Record]:
    """Return a site, and the record of its training on a device that rounds weights and images to 10 binary digits."""
    own = site(6, epochs=2, **settings)
    weights = Weights({k: _coarse(t) for k, t in own.record.weights.parameters.items()}, own.record.weights.buffers)
    (made,) = own.case(own.record).replays(weights=weights, images=_coarse(own.truth.images))
    update = replace(own.record.update.replace(made.tensors), buffers=made.buffers)
    return own, replace(own.record, update=update, source=Source(versions={"device": device}))


@pytest.mark.slow
def test_rounding_on_another_device_is_measured():
    own, record = rounded("cuda", lr=2.0)
    check = check_case(own.case(record))
    assert check.difference > 1e-3
    assert check.verdict == "right"
    assert "as another device or kernel may round" in check.facts[0]
    assert check_case(own.case(rounded("cpu", lr=2.0)[1])).verdict == "wrong"
    more = sent(record, lambda tensors: {k: t * 1.5 for k, t in tensors.items()})
    assert check_case(own.case(more)).verdict == "wrong"


@pytest.mark.slow
def test_a_training_that_multiplies_rounding_is_not_verified():
    own, record = rounded("cuda", lr=30.0)
    check = check_case(own.case(record))
    assert check.verdict == "unverified"
    assert "the client's device rounds in another way" in check.open[0]


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_without_the_order_a_rate_that_moves_the_weights_too_far_is_stopped(norm):
    """At this rate, replays point anywhere, but go much further than the record."""
    own = site(3, norm=norm, epochs=2, lr=0.3)
    blind = replace(own.truth, order=None)
    check = check_case(own.case(planned(own.record, learning_rate=3.0), truth=blind))
    assert check.verdict == "wrong"
    assert re.search("the learning rate(, the momentum or the number of epochs)? was", str(check.cause))
    assert check_case(own.case(own.record, truth=blind)).verdict == "unverified"


@pytest.mark.parametrize("order", ["own", "by class"])
@pytest.mark.parametrize("rate", [0.1, 3.0])
def test_without_the_order_a_client_that_does_not_shuffle_is_not_refused(order, rate):
    model = network(norm=False)
    images, labels = data(4)
    index = torch.arange(ONE) if order == "own" else labels.argsort()
    before = state_of(model)
    with watch(model, keep=True) as seen:
        train(model, [(images[i], labels[i]) for i in index.split(2)], lr=rate, momentum=0.0)
    own = Site(model, make_record(before, state_of(model), seen), seen.truth())
    kept = Truth(images, labels)  # as a folder holds them
    assert check_case(own.case(own.record, truth=kept)).verdict == "unverified"
