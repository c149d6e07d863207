"""Our filters against the originals in NVIDIA FLARE and Flower, on the same arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from medpfl.core.types import Update
from medpfl.defenses import LocalDP, PercentilePrivacy, SVTPrivacy

pytestmark = [pytest.mark.extra, pytest.mark.filterwarnings("ignore:.*Click 9.0:DeprecationWarning")]

BUFFERS = {"norm.running_mean": (4,), "norm.running_var": (4,), "norm.num_batches_tracked": ()}


def update(scale=0.02, dtype=torch.float32, buffers=True, seed=0):
    """Return a client's update: weight differences, and batch-norm buffers before and after three steps."""
    draw = torch.Generator().manual_seed(seed)

    def values(shape, size):
        return (size * torch.randn(shape, generator=draw, dtype=torch.float64)).to(dtype)

    tensors = {"conv.weight": values((4, 3, 3, 3), scale), "conv.bias": values((4,), scale), "gain": values((), scale)}
    before = {"norm.running_mean": values((4,), 1.0), "norm.running_var": values((4,), 1.0).abs()}
    after = {name: t + values((4,), scale) for name, t in before.items()}
    before["norm.num_batches_tracked"], after["norm.num_batches_tracked"] = torch.tensor(6), torch.tensor(9)
    return Update(tensors, "difference", *((after, 12, before) if buffers else (None, 12, None)))


def differences(one):
    """Return the arrays of an update as a client sends them to FLARE: differences of everything, as float or int."""
    moved = {name: t - one.buffers_before[name] for name, t in (one.buffers or {}).items()}
    return {name: t.numpy().copy() for name, t in {**one.tensors, **moved}.items()}


def flare(filter_, arrays, steps=None):
    """Return the arrays after one of FLARE's filters, which gets them in a data exchange object."""
    from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
    from nvflare.apis.fl_context import FLContext

    meta = {} if steps is None else {MetaKey.NUM_STEPS_CURRENT_ROUND: steps}
    dxo = DXO(DataKind.WEIGHT_DIFF, data={name: t.copy() for name, t in arrays.items()}, meta=meta)
    return from_shareable(filter_.process(dxo.to_shareable(), FLContext())).data


def close(ours, theirs, tolerance=1e-6):
    assert ours.keys() == theirs.keys()
    for name, t in ours.items():
        assert t.shape == np.shape(theirs[name])
        assert np.allclose(t, theirs[name], rtol=tolerance, atol=1e-7)  # a buffer's difference is rounded at its value
    return True


@pytest.mark.parametrize(
    ("percentile", "gamma"), [(10, 0.01), (50, 0.03), (0, 1.0), (100, 0.5), (33.3, 1e-4), (90, 1.0)]
)
@pytest.mark.parametrize("steps", [None, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("buffers", [True, False])
def test_percentile_privacy_is_flares(percentile, gamma, steps, dtype, buffers):
    from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy as Original

    raw = update(dtype=dtype, buffers=buffers)
    theirs = flare(Original(percentile, gamma), differences(raw), steps)
    ours, _ = PercentilePrivacy(percentile, gamma, steps=steps or 1).update(raw, {}, torch.Generator())
    found = differences(ours)
    assert close(found, theirs)
    dropped = {name: (t == 0) for name, t in found.items() if not name.startswith("norm.")}
    assert all(np.array_equal(zeros, np.asarray(theirs[name]) == 0) for name, zeros in dropped.items())


def test_flare_turns_counters_into_floats():
    from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy as Original

    sent = flare(Original(), differences(update()))["norm.num_batches_tracked"]
    assert sent.dtype == np.float64
    ours, _ = PercentilePrivacy().update(update(), {}, torch.Generator())
    assert ours.buffers["norm.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("steps", [None, 4])
def test_svt_privacy_is_flares_without_noise(steps):
    """With next to no noise, exactly the values above the threshold are sent, clipped."""
    from nvflare.app_common.filters.svt_privacy import SVTPrivacy as Original

    raw, tau = update(), 0.01
    each = np.concatenate([np.ravel(t) for t in differences(raw).values()]) / (steps or 1)
    count = int((np.minimum(np.abs(each), 0.02) >= tau).sum())
    settings = {"fraction": (count - 0.5) / len(each), "epsilon": 1e9, "gamma": 0.02, "tau": tau, "replace": False}
    theirs = flare(Original(**settings, epsilon_release=1e12), differences(raw), steps)
    ours = SVTPrivacy(**settings, epsilon_release=1e12, steps=steps or 1)
    assert close(differences(ours.update(raw, {}, torch.Generator().manual_seed(1))[0]), theirs, 1e-5)
    assert 0 < count < len(each)


SVT = {
    "stock": {},
    "without replacement": {"replace": False},
    "informative": {"fraction": 0.2, "epsilon": 300.0, "gamma": 1.0, "tau": 0.5, "noise_var": 20.0},
    "its own budgets": {
        "fraction": 0.3,
        "epsilon": 50.0,
        "gamma": 0.5,
        "epsilon_threshold": 10.0,
        "epsilon_query": 40.0,
        "epsilon_release": 900.0,
    },
    "nearly all": {"fraction": 0.9, "epsilon": 100.0, "gamma": 1.0, "tau": 0.2},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SVT.values(), ids=SVT)
def test_svt_privacy_has_the_law_of_flares(settings):
    """The number of values sent, which they are, and the noise on them."""
    from nvflare.app_common.filters.svt_privacy import SVTPrivacy as Original

    size, runs = 600, 150
    values = torch.linspace(-1.2, 1.2, size, dtype=torch.float64)
    arrays = {"a": values[::2].numpy(), "b": values[1::2].numpy().reshape(10, -1), "n": np.array(3.0)}
    raw = Update({name: torch.as_tensor(t) for name, t in arrays.items()}, "difference")
    np.random.seed(0)  # FLARE draws from it
    generator, original, ours = torch.Generator().manual_seed(0), Original(**settings), SVTPrivacy(**settings)
    made = {
        "theirs": [flare(original, arrays, 2) for _ in range(runs)],
        "ours": [
            {k: t.numpy() for k, t in SVTPrivacy(**settings, steps=2).update(raw, {}, generator)[0].tensors.items()}
            for _ in range(runs)
        ],
    }
    told = np.clip(np.concatenate([arrays["a"], arrays["b"].ravel()]) / 2, -ours.gamma, ours.gamma) * 2
    sent = {who: np.stack([np.concatenate([s["a"], s["b"].ravel()]) for s in all_]) for who, all_ in made.items()}
    assert all(s["n"] == 3.0 for all_ in made.values() for s in all_)
    counts = {who: (s != 0).sum(1) for who, s in sent.items()}
    spread = max(counts["theirs"].std(), counts["ours"].std(), 0.3) * (2 / runs) ** 0.5
    assert abs(counts["theirs"].mean() - counts["ours"].mean()) < 5 * spread
    assert counts["ours"].max() <= np.ceil(ours.fraction * (size + 1))
    noise = {who: (s - told)[s != 0] for who, s in sent.items()}
    assert stats.ks_2samp(noise["theirs"], noise["ours"]).pvalue > 1e-4
    order = np.abs(told).argsort(kind="stable").reshape(20, -1)
    shares = {who: (s != 0).mean(0)[order].mean(1) for who, s in sent.items()}
    deviation = np.sqrt(2 * shares["theirs"] * (1 - shares["theirs"]) / (runs * order.shape[1])) + 1e-3
    # One threshold is drawn in each run, so that the values of a run are accepted together.
    together = {who: (s != 0)[:, order].mean(2).std(0) for who, s in sent.items()}
    allowed = 5 * (deviation + (together["theirs"] + together["ours"]) / runs**0.5)
    assert (np.abs(shares["theirs"] - shares["ours"]) < allowed).all()


def test_svt_privacy_has_flares_account():
    from nvflare.app_common.filters.svt_privacy import SVTPrivacy as Original

    original = Original()
    flare(original, {"a": np.random.default_rng(0).normal(size=7000)})
    assert original.get_privacy_spent() == pytest.approx(70.1)
    assert "epsilon 70.1" in SVTPrivacy().account(7000, 1)


def flower(settings, one, monkeypatch):
    """Return the differences after Flower's mod, whose noise is that of our generator with seed 1, and its dtypes."""
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
    from flwr.app import Context, Message, RecordDict
    from flwr.client.mod import LocalDpMod
    from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.common import recorddict_compat as compat
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # as Flower's own simulation sets them
    start = {name: torch.zeros_like(t) for name, t in one.tensors.items()} | dict(one.buffers_before or {})
    end = {**one.tensors, **(one.buffers or {})}
    generator = torch.Generator().manual_seed(1)
    kinds = [t.dtype if t.is_floating_point() else torch.float64 for t in end.values()]
    draws = iter([torch.randn(t.shape, generator=generator, dtype=k) for t, k in zip(end.values(), kinds, strict=True)])
    monkeypatch.setattr(np.random, "normal", lambda mean, deviation, shape: deviation * next(draws).numpy())

    def told(tensors):
        return ndarrays_to_parameters([t.numpy().copy() for t in tensors.values()])

    def client(message, context):
        result = FitRes(Status(Code.OK, ""), told(end), one.num_samples, {})
        return Message(compat.fitres_to_recorddict(result, keep_input=True), reply_to=message)

    content = compat.fitins_to_recorddict(FitIns(told(start), {}), keep_input=True)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    reply = LocalDpMod(**settings)(Message(content, dst_node_id=1, message_type="train"), context, client)
    arrays = parameters_to_ndarrays(compat.recorddict_to_fitres(reply.content, keep_input=True).parameters)
    return {name: array - start[name].numpy() for name, array in zip(end, arrays, strict=True)}, arrays


@pytest.mark.parametrize("settings", [(1.0, 1.0, 1.0, 1e-5), (100.0, 0.1, 2.0, 1e-3), (1.0, 1e-4, 10.0, 1e-5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("buffers", [True, False])
def test_local_dp_is_flowers(settings, dtype, buffers, monkeypatch):
    raw = update(scale=0.5, dtype=dtype, buffers=buffers)
    ours = LocalDP(*settings)
    names = ("clipping_norm", "sensitivity", "epsilon", "delta")
    theirs, arrays = flower(dict(zip(names, settings, strict=True)), raw, monkeypatch)
    sent, _ = ours.update(raw, {}, torch.Generator().manual_seed(1))
    assert close(differences(sent), theirs, 1e-5)
    ends = (*sent.tensors.values(), *(sent.buffers or {}).values())
    assert [t.numpy().dtype for t in ends] == [array.dtype for array in arrays]
