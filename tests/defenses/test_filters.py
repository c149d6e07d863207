"""What federations' filters do to an update, in numbers, and what they disclose."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from medpfl.auditing.privacy.epsilon import spent, uncovered_statistics
from medpfl.auditing.probe.disclosure import probe
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import NO_DEFENSE
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Batch, Update, Weights
from medpfl.data import Samples
from medpfl.defenses import ClientDP, Clipping, GaussianNoise, LocalDP, PercentilePrivacy, SVTPrivacy
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare
from medpfl.federated.server import observe
from medpfl.models import MLP, LeNet

DIFFERENCE = Plan("FedAvg", learning_rate=0.005)
FILTERS = (PercentilePrivacy(), SVTPrivacy(), LocalDP(0.1, 0.01))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(update):
    return torch.cat([t.double().flatten() for t in update.tensors.values()])


def played(defense, model, batch, plan, seed=0):
    return client_round(prepare(model, plan), Weights.of(model), batch, plan, defense, {}, generator(seed))


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 3))


def batch(images=8, size=8):
    return Batch(torch.rand(images, 1, size, size, generator=generator(1)), torch.arange(images) % 3)


@pytest.fixture(scope="module")
def scene():
    """Return LeNet, one of the embedded images, and its update: the weight difference after one step."""
    data = Samples().load()
    model = LeNet("idlg").build(data.shape, len(data.classes), 0)
    private = Batch(data.images[:1], data.labels[:1])
    return model, private, played(NO_DEFENSE, model, private, DIFFERENCE).raw


def test_stock_percentile_privacy_hardly_changes_the_update(scene):
    raw = scene[2]
    sent, _ = PercentilePrivacy().update(raw, {}, generator())
    assert 0 < (flat(sent) - flat(raw)).norm() < 0.01 * flat(raw).norm()
    assert int((flat(sent) == 0).sum()) == pytest.approx(0.1 * len(flat(raw)), rel=0.02)


def test_stock_percentile_privacy_flattens_a_large_gradient(scene):
    """The limit has a unit: what a difference passes, a gradient does not."""
    model, private, _ = scene
    raw = played(NO_DEFENSE, model, private, Plan()).raw
    sent, _ = PercentilePrivacy().update(raw, {}, generator())
    assert (flat(sent) - flat(raw)).norm() > 0.9 * flat(raw).norm()


def test_stock_svt_privacy_sends_a_tenth_of_the_values_as_noise(scene):
    raw = flat(scene[2])
    sent = torch.stack([flat(SVTPrivacy().update(scene[2], {}, generator(seed))[0]) for seed in range(5)])
    assert ((sent @ raw).abs() / sent.norm(dim=1) / raw.norm() < 0.06).all()
    assert (((sent != 0).double().mean(1) - 0.092).abs() < 0.01).all()


@pytest.mark.slow
def test_a_products_local_dp_adds_no_noise(scene):
    raw, shipped = scene[2], LocalDP(1.0, 1e-4, 10.0)
    assert shipped.mechanism(Plan(), 1).noise == pytest.approx(4.8e-5, rel=0.02)
    sent, _ = shipped.update(raw, {}, generator())
    assert (flat(sent) - flat(raw)).norm() < 0.05 * flat(raw).norm()
    assert "epsilon is in the hundreds" in spent([shipped], Plan(), 1e-5, scene[0])[repr(shipped)]


def test_local_dp_is_client_dp_with_another_formula(scene):
    raw, one = scene[2], LocalDP(0.1, 0.2, 4.0, 1e-3)
    other = ClientDP(0.1, one.deviation / 0.1)
    assert torch.allclose(flat(one.update(raw, {}, generator())[0]), flat(other.update(raw, {}, generator())[0]))
    assert one.mechanism(DIFFERENCE, 3) == other.mechanism(DIFFERENCE, 3)


@pytest.mark.slow
def test_idlg_reconstructs_an_image_through_percentile_privacy(scene):
    from medpfl.attacks import iDLG
    from medpfl.metrics.pixel import ssim

    model, private, _ = scene
    found = {}
    for defense in (NO_DEFENSE, PercentilePrivacy()):
        sent = played(defense, model, private, DIFFERENCE)
        facts = {"image_shape": tuple(private.images.shape[1:]), "num_classes": 4}
        client, known = prepare(model, DIFFERENCE), ThreatModel(("defense",))
        seen = observe(client, Weights.of(model), DIFFERENCE, [sent], known, defense=defense, **facts)
        guess = iDLG(steps=60)(seen, generator(3)).guesses[0]
        found[repr(defense)] = float(ssim(guess, private.images))
    assert min(found.values()) > 0.95


@pytest.mark.slow
def test_svt_privacy_states_its_own_account_in_words():
    svt = SVTPrivacy()
    assert "70.1" in svt.account(7000, 1)
    assert "no epsilon worth the name" in svt.account(7000, 1)
    assert "epsilon 210" in svt.account(7000, 3)
    assert "does not confirm" in SVTPrivacy(noise_var=1e-4).account(100, 1)
    model = MLP((16,)).build((1, 16, 16), 3, 0)
    told = spent([svt, ClientDP() | svt, ClientDP()], Plan(), 1e-5, model)
    assert "worth the name" in told[repr(svt)]
    assert "(PRV)" in told[repr(ClientDP() | svt)]
    assert "worth the name" in told[repr(ClientDP() | svt)]
    assert "worth the name" not in told[repr(ClientDP())]


@pytest.mark.slow
def test_epsilon_of_local_dp_covers_batch_norm_statistics():
    model, plan = normed(), Plan(batch_size=8)
    assert uncovered_statistics(ClientDP(), model, plan)
    assert uncovered_statistics(ClientDP() | LocalDP(), model, plan)
    assert not uncovered_statistics(LocalDP(), model, plan)
    assert "(PRV)" in spent([LocalDP()], plan, 1e-5, model)[repr(LocalDP())]


@pytest.mark.parametrize("defense", FILTERS, ids=repr)
def test_batch_norm_statistics_are_filtered_too(defense):
    model, plan = normed(), Plan("FedAvg", 4, 8)
    made = played(defense, model, batch(), plan)
    before, raw, sent = made.raw.buffers_before, made.raw.buffers, made.sent.buffers
    assert int(raw["1.num_batches_tracked"]) == 2
    assert all((raw[name] != before[name]).any() for name in raw)
    assert not torch.equal(sent["1.running_var"], raw["1.running_var"])
    if not isinstance(defense, LocalDP):
        assert torch.equal(sent["1.num_batches_tracked"], raw["1.num_batches_tracked"])


def test_percentile_privacy_clips_batch_norm_statistics():
    made = played(PercentilePrivacy(), normed(), batch(), Plan("FedAvg", 4, 8))
    moved = {k: t - made.raw.buffers_before[k] for k, t in made.sent.buffers.items() if t.ndim}
    assert max(float(t.abs().max()) for t in moved.values()) == pytest.approx(0.01, abs=1e-6)


def test_local_dp_makes_a_running_variance_negative():
    sent = played(LocalDP(), normed(), batch(), Plan("FedAvg", 4, 8)).sent
    assert sent.buffers["1.running_var"].min() < 0


@pytest.mark.parametrize("defense", [*FILTERS, LocalDP(0.1, 0.0001), PercentilePrivacy(30, 0.001)], ids=repr)
@pytest.mark.parametrize("plan", [Plan(batch_size=8), Plan("FedAvg", 4, 8)], ids=["FedSGD", "FedAvg"])
def test_the_disclosure_holds_with_batch_norm_in_train_mode(defense, plan):
    own = [batch(), Batch(1 - batch().images, batch().labels)]
    found = probe(defense, normed(), plan, own, generator())
    assert found.problems == ()
    assert found.holds


@pytest.mark.parametrize("defense", FILTERS, ids=repr)
def test_buffers_without_those_before_are_refused(defense):
    raw = played(NO_DEFENSE, normed(), batch(), Plan(batch_size=8)).raw
    with pytest.raises(InputError, match="buffers_before"):
        defense.update(replace(raw, buffers_before=None), {}, generator())
    with pytest.raises(InputError, match=r"no '1\.num_batches_tracked'"):
        defense.update(replace(raw, buffers_before={"1.running_var": torch.ones(4)}), {}, generator())
    defense.disclose(replace(raw, buffers_before=None), Plan(batch_size=8))


def test_a_buffer_of_truth_values_survives():
    before = {"on": torch.tensor([True, False, True])}
    raw = Update({"w": torch.ones(50)}, "difference", {"on": torch.tensor([True, True, False])}, 1, before)
    for defense in FILTERS:
        assert defense.update(raw, {}, generator())[0].buffers["on"].dtype == torch.bool


@pytest.mark.parametrize("later", [GaussianNoise(1e-5), Clipping(0.1)], ids=repr)
def test_a_later_part_leaves_the_disclosure_usable(later, scene):
    for defense in FILTERS:
        sent = (defense | later).update(scene[2], (defense | later).init(), generator())[0]
        channel = (defense | later).disclose(sent, DIFFERENCE)
        assert all(t.isfinite().all() for t in channel(scene[2].tensors).values())


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: PercentilePrivacy(101), "percentile is 101"),
        (lambda: PercentilePrivacy(gamma=0), "gamma is 0"),
        (lambda: PercentilePrivacy(steps=0), "steps is 0"),
        (lambda: SVTPrivacy(fraction=0), "fraction is 0"),
        (lambda: SVTPrivacy(epsilon=0.1, epsilon_query=0.2), "their sum must be epsilon"),
        (lambda: SVTPrivacy(epsilon_threshold=0.05, epsilon_query=0.01), "their sum must be epsilon"),
        (lambda: SVTPrivacy(epsilon_release=-1.0), "epsilon_release is -1"),
        (lambda: LocalDP(delta=1.0), "delta is 1"),
        (lambda: LocalDP(sensitivity=0.0), "sensitivity is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(made, said):
    with pytest.raises(InputError, match=said):
        made()


def test_svt_privacy_stops_where_the_original_runs_forever():
    far = SVTPrivacy(epsilon=1e9, gamma=1e-5, tau=1.0)
    with pytest.raises(InputError, match="lower tau or fraction"):
        far.update(Update({"w": torch.ones(50)}), {}, generator())
