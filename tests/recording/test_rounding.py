"""Half precision, and devices that a record does not state: what rounding explains is neither wrong nor right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medpfl.core.records.origin import Source
from medpfl.core.records.record import Record
from medpfl.core.types import Weights
from medpfl.recording.check import Case
from medpfl.recording.client import check_case
from medpfl.recording.mean import check_mean
from medpfl.recording.record import UpdateFacts, make_record, origin_of, state_of
from medpfl.recording.rounding import _coarse, doubt
from medpfl.recording.watching.watch import watch
from tests.recording.loops import loader, network, train
from tests.recording.test_diagnosis import ONE, Site, data, planned, sent, site


def halved(own: Site) -> Record:
    """Return the record of a site's states before and after the training, which were sent in half precision."""
    start = own.record.weights
    before = {**start.parameters, **start.buffers}
    after = {k: t + own.record.update.tensors[k] for k, t in start.parameters.items()} | own.record.update.buffers
    states = ({k: t.half() if t.is_floating_point() else t for k, t in state.items()} for state in (before, after))
    return make_record(*states, own.record.plan, parameters=list(start.parameters))


def read(own: Site, held: Record, **options) -> Case:
    """Return the case of a record as it was read, under the dtypes of the site's network."""
    named = held.named_as(state_of(own.network))
    return Case(own.network, named, options.pop("truth", own.truth), held=held, **options)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_weights_in_half_precision_are_not_wrong(norm):
    """The client computes with its own weights; the record's have 11 binary digits."""
    own = site(ONE, norm=norm, lr=0.2)
    held = halved(own)
    check = check_case(read(own, held))
    assert (check.verdict, check.cause) == ("right", None)
    assert check.difference > 1e-3
    faster = planned(held, learning_rate=2.0)
    assert check_case(read(own, faster)).verdict == "wrong"


def coarse_site(lr: float) -> Site:
    """Return a site that trains in bfloat16, from weights of 8 binary digits."""
    model = network(norm=False).bfloat16()
    images, labels = data()
    before = state_of(model)
    with watch(model, keep=True) as seen:
        train(model, loader(images.bfloat16(), labels, ONE), epochs=1, lr=lr, momentum=0.0)
    return Site(model, make_record(before, state_of(model), seen), seen.truth())


def test_an_update_within_the_rounding_of_its_weights_is_not_verified(monkeypatch):
    monkeypatch.setattr("tests.recording.loops.IMAGES", torch.rand(10, 1, 8, 8).bfloat16())
    own = coarse_site(0.02)
    others = replace(own.truth, images=data(9)[0].bfloat16())
    nothing = sent(own.record, lambda tensors: {k: 0 * t for k, t in tensors.items()})
    for case in (own.case(own.record), own.case(own.record, truth=others)):
        check = check_case(case)
        assert check.verdict == "unverified", check
        assert "the numbers have few digits" in check.open[0]
    assert check_case(own.case(nothing)).verdict == "wrong"


def rounded(device: str = "") -> tuple[Site, Record]:
    """Return a site, and the record of its training on a device that rounds more, and may not be stated."""
    own = site(ONE, norm=False)
    weights = Weights({k: _coarse(t) for k, t in own.record.weights.parameters.items()}, {})
    (made,) = own.case(own.record).replays(weights=weights, images=_coarse(own.truth.images))
    exact = own.record.update.tensors
    update = own.record.update.replace({k: exact[k] + 5.5 * (t - exact[k]) for k, t in made.tensors.items()})
    return own, replace(own.record, update=update, source=Source(versions={"device": device} if device else {}))


VERDICTS = {"cuda": "right", "cpu": "wrong", "": "unverified"}


@pytest.mark.parametrize(("device", "verdict"), VERDICTS.items(), ids=["a GPU", "a CPU", "not stated"])
def test_rounding_is_judged_by_the_stated_device(device, verdict):
    own, record = rounded(device)
    check = check_case(own.case(record))
    assert check.difference > 1e-3
    assert check.verdict == verdict, check
    if not device:
        assert "the record does not state the client's device" in check.open[0]
        assert check_case(own.case(replace(record, source=None))).verdict == verdict


def longer(tensors):
    return {k: t * 1.5 for k, t in tensors.items()}


def zeros(tensors):
    return {k: 0 * t for k, t in tensors.items()}


@pytest.mark.parametrize("change", [longer, zeros])
def test_what_rounding_does_not_explain_is_wrong_on_every_device(change):
    own, record = rounded()
    assert check_case(own.case(sent(record, change))).verdict == "wrong"


def test_an_update_of_zeros_is_wrong_although_the_training_multiplies_rounding(monkeypatch):
    monkeypatch.setattr("medpfl.recording.client.allowance", lambda case, made: 5.0)
    own, record = rounded()
    assert check_case(own.case(record)).verdict == "unverified"
    assert check_case(own.case(sent(record, zeros))).verdict == "wrong"


def test_buffers_are_judged_by_the_rounding_of_the_parameters():
    """The parameters are exactly the replay's, so the device rounds as this one does."""
    own = site(6, epochs=2, lr=30.0)
    off = {k: t * 1.2 if t.is_floating_point() else t for k, t in own.record.update.buffers.items()}
    record = replace(own.record, update=replace(own.record.update, buffers=off))
    assert check_case(own.case(record)).verdict == "wrong"


@pytest.mark.parametrize("device", ["cuda", ""], ids=["stated", "not stated"])
def test_a_mean_of_clients_on_another_device(device):
    own, record = rounded(device)
    both = replace(own.truth, images=own.truth.images.repeat(2, 1, 1, 1), labels=own.truth.labels.repeat(2))
    both = replace(both, order=torch.cat([own.truth.order, own.truth.order + ONE]))
    mean = replace(record, clients=2, update=replace(record.update, num_samples=2 * ONE))
    check = check_mean(own.network, mean, both)
    assert check.verdict == ("right" if device else "unverified"), check
    assert check_mean(own.network, sent(mean, longer), both).verdict == "wrong"


def test_a_mean_in_half_precision_is_not_wrong():
    own = site(ONE, norm=False, lr=0.2)
    held = halved(own)
    named = held.named_as(state_of(own.network))
    assert check_mean(own.network, named, own.truth, held=held).verdict == "right"


def test_a_watched_training_states_its_device():
    model = network()
    before = state_of(model)
    with watch(model) as seen:
        train(model)
    made = make_record(before, state_of(model), seen, facts=UpdateFacts(source=origin_of("torch")))
    assert made.source.versions["device"] == "cpu"


def test_the_reasons_are_told_apart():
    own = site(ONE)
    stated = replace(own.record, source=Source(versions={"device": "cuda"}))
    assert not doubt(stated, 0.01, 0.001, 0.02)
    assert "which this training multiplies" in doubt(stated, 0.2, 0.001, 0.3)
    assert "few digits" in doubt(stated, 0.2, 0.3, 0.0)
    assert _coarse(torch.ones(2)).equal(torch.ones(2))
