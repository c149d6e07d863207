"""The adapters for Flower, in this process: no Ray, no server, nothing on the network."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.records.record import Record
from medpfl.core.records.steps import Steps
from medpfl.core.records.truth import Truth
from tests.integrations import flower_apps as apps

pytestmark = [pytest.mark.extra, pytest.mark.filterwarnings("ignore:.*Click 9.0:DeprecationWarning")]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    apps.telemetry_off(monkeypatch)
    logging.getLogger("flwr").setLevel(logging.ERROR)


def records(folder):
    found = [Record.load(path) for path in sorted(folder.rglob("*.safetensors")) if path.parent.name != "private-truth"]
    return sorted(found, key=lambda one: (one.source.round, float(next(iter(one.update.tensors.values())).sum())))


def replayed(record, truth, kind):
    """Train again with the truth's pixels, labels and order; return the state dict."""
    model, plan = apps.make_model(kind), record.regular_plan()
    model.load_state_dict({**record.weights.parameters, **record.weights.buffers})
    optimizer = torch.optim.SGD(model.parameters(), lr=plan.learning_rate, momentum=plan.momentum)
    for step in truth.order.split([one.images for one in record.steps.steps]):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(truth.images[step]), truth.labels[step]).backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("kind", ["lenet", "relu", "norm"])
def test_client_and_server_record_the_same_bytes_and_the_record_replays(tmp_path, kind):
    from medpfl.integrations import flower

    app = apps.client_app([flower.record(tmp_path / "client", truth=True)], kind)
    apps.run(flower.RecordingGrid(apps.local_grid(app), tmp_path / "server"), kind=kind)
    client, server = records(tmp_path / "client"), records(tmp_path / "server")
    assert len(client) == len(server) == 4
    for one, other in zip(client, server, strict=True):
        for group in ("tensors", "buffers"):
            own, seen = getattr(one.update, group), getattr(other.update, group)
            assert own.keys() == seen.keys()
            assert all(own[name].numpy().tobytes() == seen[name].numpy().tobytes() for name in own)
        assert one.update.num_samples == other.update.num_samples == 18
        assert one.source.round == other.source.round
        assert (one.source.place, other.source.place) == ("client", "server")
        assert isinstance(one.plan, Plan)
        assert (one.plan.batch_size, one.plan.images, one.plan.epochs, one.plan.momentum) == (4, 18, 2, 0.9)
        assert isinstance(other.plan, Steps)
        assert not one.misfits()
        assert not other.misfits()
    for path in (tmp_path / "client").glob("*.safetensors"):
        record, truth = Record.load(path), Truth.load(path.parent / "private-truth" / path.name)
        after = replayed(record, truth, kind)
        for name, value in record.update.tensors.items():
            whole = record.weights.parameters[name] + value
            assert float((after[name] - whole).norm() / value.norm()) < 1e-5
        for name, value in (record.update.buffers or {}).items():
            torch.testing.assert_close(after[name], value.to(after[name].dtype))


def test_each_client_of_a_simulation_can_have_a_folder_of_its_own(tmp_path):
    from medpfl.integrations import flower

    grid = apps.local_grid(apps.client_app([flower.record(tmp_path / "u/{site}", truth=True)]))
    apps.run(grid, 1)
    folders = ("site-0", "site-0/private-truth", "site-1", "site-1/private-truth")
    assert all(len([*(tmp_path / "u" / name).glob("*.safetensors")]) == 1 for name in folders)
    assert {path.name for path in (tmp_path / "u").iterdir()} == {"site-0", "site-1"}


def test_a_node_without_a_partition_is_named_by_its_number():
    from flwr.app import Context, RecordDict, UserConfig

    from medpfl.integrations.flower.mods import _folder_of

    node = Context(1, 42, UserConfig({}), RecordDict(), UserConfig({}))
    assert _folder_of(Path("u/{site}"), node) == Path("u/node-42")
    assert _folder_of(Path("u"), node) == Path("u")


def test_a_truth_is_kept_only_if_asked_and_only_for_its_owner(tmp_path):
    from medpfl.integrations import flower

    apps.run(apps.local_grid(apps.client_app([flower.record(tmp_path / "plain")])), 1)
    assert not (tmp_path / "plain" / "private-truth").exists()
    apps.run(apps.local_grid(apps.client_app([flower.record(tmp_path / "kept", truth=True)])), 1)
    place = tmp_path / "kept" / "private-truth"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {stat.S_IMODE(one.stat().st_mode) for one in place.iterdir()} == {0o600}
    pixels = apps.pictures(0)[0].numpy().tobytes()[:64]
    for path in (tmp_path / "kept").glob("*.safetensors"):
        assert pixels not in path.read_bytes()


def test_the_recorder_stands_first_and_names_the_mods_that_acted(tmp_path, capsys):
    from flwr.clientapp.mod import LocalDpMod

    from medpfl.integrations import flower

    noise = LocalDpMod(1.0, 0.1, 1.0, 1e-5)
    mods = [flower.record(tmp_path / "sent"), noise, flower.defend("Clipping(0.5)"), flower.record(tmp_path / "raw")]
    server = tmp_path / "server"
    apps.run(flower.RecordingGrid(apps.local_grid(apps.client_app(mods, "relu")), server), 1, "relu")
    sent, raw, seen = records(tmp_path / "sent"), records(tmp_path / "raw"), records(server)
    assert sent[0].filters == (
        "medpfl.defend('Clipping(norm=0.5)')",
        "LocalDpMod(clipping_norm=1.0, sensitivity=0.1, epsilon=1.0, delta=1e-05)",
    )
    assert raw[0].filters == ()
    assert sent[0].defense == "Clipping(norm=0.5)"
    assert any(torch.equal(sent[0].update.tensors["0.bias"], one.update.tensors["0.bias"]) for one in seen)
    assert "put record(...) first" not in capsys.readouterr().err  # another recorder stands first
    apps.run(apps.local_grid(apps.client_app([noise, flower.record(tmp_path / "second")], "relu")), 1, "relu")
    told = capsys.readouterr().err
    assert "LocalDpMod(clipping_norm=1.0" in told
    assert "put record(...) first" in told


def test_a_defense_acts_on_the_difference_and_leaves_the_rest(tmp_path):
    from medpfl.integrations import flower

    mods = [flower.record(tmp_path / "sent"), flower.defend("Clipping(0.01)"), flower.record(tmp_path / "raw")]
    apps.run(apps.local_grid(apps.client_app(mods)), 1)
    for sent, raw in zip(records(tmp_path / "sent"), records(tmp_path / "raw"), strict=False):
        assert float(sent.update.norm()) == pytest.approx(0.01, rel=1e-4)
        assert float(raw.update.norm()) > 0.1
        assert {k: t.dtype for k, t in sent.update.tensors.items()} == {
            k: t.dtype for k, t in raw.update.tensors.items()
        }
    counters = [one.update.buffers["1.num_batches_tracked"] for one in records(tmp_path / "sent")]
    assert [(int(one), one.dtype) for one in counters] == [(10, torch.int64)] * 2


def test_an_update_that_a_defense_leaves_alone_keeps_every_byte(tmp_path):
    from medpfl.integrations import flower

    mods = [flower.record(tmp_path / "sent"), flower.defend("Clipping(1e6)"), flower.record(tmp_path / "raw")]
    apps.run(apps.local_grid(apps.client_app(mods)), 1)
    for sent, raw in zip(records(tmp_path / "sent"), records(tmp_path / "raw"), strict=True):
        assert all(torch.equal(sent.update.tensors[k], raw.update.tensors[k]) for k in raw.update.tensors)


def test_a_defense_keeps_its_state_in_the_context_between_rounds():
    """What one round leaves out, the next one adds: a new mod in each round, as in a new process."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict, UserConfig

    from medpfl.integrations import flower

    context = Context(1, 1, UserConfig({}), RecordDict(), UserConfig({}))

    def client(message, own):
        after = {"w": message.content["arrays"].to_torch_state_dict()["w"] + torch.tensor([4.0, 3.0, 2.0, 1.0])}
        content = {"arrays": ArrayRecord(after), "metrics": MetricRecord({"num-examples": 4})}
        return Message(RecordDict(content), reply_to=message)

    sent = []
    for _ in range(2):
        message = Message(RecordDict({"arrays": ArrayRecord({"w": torch.zeros(4)})}), 1, "train", group_id="1")
        message.metadata.__dict__["_message_id"] = "x"
        reply = flower.defend("TopK(0.25, feedback=True)")(message, context, client)
        sent.append(reply.content["arrays"].to_torch_state_dict()["w"].tolist())
    assert sent == [[4, 0, 0, 0], [0, 6, 0, 0]]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("DPSGD", "acts on the gradients"),
        ("PRECODE", "changes the model"),
        ("SecAggPlus", "needs the updates of several clients"),
        ("GaussianNoise(0.1, where='server')", "acts at the server"),
        ("Cliping", "did you mean"),
    ],
)
def test_a_defense_that_cannot_act_on_a_finished_update_is_refused_with_the_reason(spec, why):
    from medpfl.integrations import flower

    with pytest.raises(InputError, match=why):
        flower.defend(spec)


def test_a_recorder_that_fails_stops_nothing(tmp_path, capsys):
    from medpfl.integrations import flower

    (tmp_path / "file").write_text("")
    result = apps.run(apps.local_grid(apps.client_app([flower.record(tmp_path / "file")])), 1)
    assert result.arrays
    assert "was not recorded" in capsys.readouterr().err


def test_a_training_that_takes_no_step_of_torch_is_recorded_as_unknown(tmp_path, capsys):
    from medpfl.integrations import flower

    def elsewhere(model, client):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)

    apps.run(apps.local_grid(apps.client_app([flower.record(tmp_path)], function=elsewhere)), 1)
    (one, _) = records(tmp_path)
    assert "no training steps" in capsys.readouterr().err
    with pytest.raises(InputError, match="nobody watched"):
        one.regular_plan()


def test_numbered_arrays_of_an_older_client_get_the_models_names(tmp_path):
    from flwr.client import NumPyClient
    from flwr.clientapp import ClientApp
    from flwr.common import FitIns, ndarrays_to_parameters
    from flwr.compat.common.recorddict_compat import fitins_to_recorddict

    from medpfl.integrations import flower

    class Client(NumPyClient):
        def fit(self, parameters, config):
            model = apps.make_model()
            keys = model.state_dict().keys()
            model.load_state_dict(dict(zip(keys, (torch.tensor(p) for p in parameters), strict=True)))
            apps.train(model, 0)
            return [t.numpy() for t in model.state_dict().values()], 18, {}

    mods = [flower.record(tmp_path), flower.defend("Clipping(0.01)")]
    grid = apps.local_grid(ClientApp(client_fn=lambda context: Client().to_client(), mods=mods))
    arrays = [t.numpy() for t in apps.make_model().state_dict().values()]
    content = fitins_to_recorddict(FitIns(ndarrays_to_parameters(arrays), {}), keep_input=True)
    replies = list(grid.send_and_receive([grid.create_message(content, "train", 1, "7")]))
    assert not replies[0].has_error(), replies[0].error
    (one,) = records(tmp_path)
    assert one.source.round == 7
    assert set(one.weights.parameters) == {name for name, _ in apps.make_model().named_parameters()}
    assert one.regular_plan().images == 18
    assert float(one.update.norm()) == pytest.approx(0.01, rel=1e-4)
    assert int(one.update.buffers["1.num_batches_tracked"]) == 10


def test_a_site_puts_mods_around_an_app_that_it_did_not_write(tmp_path, monkeypatch):
    from flwr.clientapp import ClientApp

    from medpfl.integrations import flower

    monkeypatch.setattr(ClientApp, "__call__", ClientApp.__call__)
    app = apps.client_app([flower.defend("Clipping(0.01)")])
    flower.install(lambda: [flower.record(tmp_path)])
    apps.run(apps.local_grid(app), 1)
    found = records(tmp_path)
    assert len(found) == 2
    assert found[0].filters == ("medpfl.defend('Clipping(norm=0.01)')",)
    assert float(found[0].update.norm()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("where", ["client", "server"])
def test_the_servers_grid_records_what_it_sees_under_differential_privacy(tmp_path, where):
    """Clipping at the server comes after the update is seen; clipping at the client before."""
    from flwr.clientapp.mod import fixedclipping_mod
    from flwr.serverapp import strategy as strategies

    from medpfl.integrations import flower

    wrapper = {
        "client": strategies.DifferentialPrivacyClientSideFixedClipping,
        "server": strategies.DifferentialPrivacyServerSideFixedClipping,
    }[where]
    app = apps.client_app([fixedclipping_mod] if where == "client" else [], "relu")
    grid = flower.RecordingGrid(apps.local_grid(app), tmp_path)
    apps.run(grid, 1, "relu", lambda plain: wrapper(plain, 1.0, 0.02, 2))
    found = records(tmp_path)
    assert len(found) == 2
    assert all((float(one.update.norm()) <= 0.0201) == (where == "client") for one in found)


def test_the_servers_grid_works_with_pushing_and_pulling(tmp_path):
    from flwr.app import ArrayRecord, RecordDict

    from medpfl.integrations import flower

    plan = Plan("FedAvg", 4, 18, 2, 0.05, 0.9)
    grid = flower.RecordingGrid(apps.local_grid(apps.client_app([])), tmp_path, plan)
    content = RecordDict({"arrays": ArrayRecord(apps.make_model().state_dict())})
    ids = list(grid.push_messages([grid.create_message(content, "train", node, "3") for node in grid.get_node_ids()]))
    assert len(list(grid.pull_messages(ids))) == 2
    found = records(tmp_path)
    assert [one.plan for one in found] == [plan, plan]
    assert {path.parent.name for path in tmp_path.rglob("*.safetensors")} == {"site-1", "site-2"}


def test_under_secure_aggregation_the_servers_grid_records_masked_vectors_and_counts_in_clear(tmp_path):
    import numpy as np
    from flwr.app import Context, Message, RecordDict
    from flwr.client.mod import secaggplus_mod
    from flwr.clientapp import ClientApp
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
    from flwr.compat.common.recorddict_compat import fitres_to_recorddict
    from flwr.server import LegacyContext, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

    from medpfl.integrations import flower

    app = ClientApp(mods=[secaggplus_mod])

    @app.train()
    def fit(message, context):
        held = next(iter(message.content.array_records.values())).to_numpy_ndarrays()[0]
        moved = ndarrays_to_parameters([(held + int(context.node_config["partition-id"]) + 1).astype(np.float32)])
        return Message(
            fitres_to_recorddict(FitRes(Status(Code.OK, ""), moved, 10, {}), keep_input=False), reply_to=message
        )

    start = ndarrays_to_parameters([np.zeros(6, np.float32)])
    strategy = FedAvg(min_fit_clients=4, min_available_clients=4, fraction_evaluate=0.0, initial_parameters=start)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=1), strategy=strategy)
    flow = DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(3, 2, clipping_range=8.0))
    flow(flower.RecordingGrid(apps.local_grid(app, 4), tmp_path), legacy)
    total = next(iter(legacy.state.array_records.values())).to_numpy_ndarrays()[0]
    assert np.allclose(total, 2.5, atol=1e-2)
    found = [flower.Masked.load(path) for path in sorted(tmp_path.rglob("*.safetensors"))]
    assert len(found) == 4
    assert {one.num_samples for one in found} == {10}
    for one in found:
        assert one.source.place == "server"
        assert [tuple(t.shape) for t in one.vectors][-1] == (6,)
        assert float(one.vectors[-1].double().abs().max()) > 1e6  # random integers, no weights near 0


@pytest.mark.parametrize("place", ["mods", "grid"])
def test_weights_that_cannot_be_read_stop_nothing(tmp_path, monkeypatch, capsys, place):
    from importlib import import_module

    from medpfl.integrations import flower

    def broken(_):
        raise TypeError("planted")

    monkeypatch.setattr(import_module(f"medpfl.integrations.flower.{place}"), "state_in", broken)
    app = apps.client_app([flower.record(tmp_path / "client")])
    result = apps.run(flower.RecordingGrid(apps.local_grid(app), tmp_path / "server"), 1)
    assert result.arrays
    assert "will not be recorded: planted" in capsys.readouterr().err
    assert not records(tmp_path / {"mods": "client", "grid": "server"}[place])
    assert records(tmp_path / {"mods": "server", "grid": "client"}[place])
