"""The filters for NVIDIA FLARE: on single messages, and in FLARE's simulator."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.records.record import Record
from medpfl.core.records.truth import Truth
from tests.integrations import flower_apps as apps
from tests.integrations.test_flower import replayed

pytestmark = [pytest.mark.extra, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


class Site:
    """One client's chains, called as FLARE calls them, with the training in another thread."""

    def __init__(self, data, result, name="site-1", server=False):
        from nvflare.apis.filter import FilterChainType, FilterContextKey
        from nvflare.apis.fl_constant import FilterKey
        from nvflare.apis.fl_context import FLContextManager

        logging.getLogger("nvflare").setLevel(logging.ERROR)
        self.contexts = FLContextManager(engine=None, identity_name=name, job_id="job")
        for chain, kind in ((data, FilterChainType.TASK_DATA_CHAIN), (result, FilterChainType.TASK_RESULT_CHAIN)):
            for one in chain:
                one.set_prop(FilterContextKey.CHAIN_TYPE, kind)
        self.data, self.results = data, result
        self.directions = (FilterKey.OUT, FilterKey.IN) if server else (FilterKey.IN, FilterKey.OUT)

    def context(self, direction, task="train"):
        from nvflare.apis.fl_constant import FilterKey, FLContextKey

        runner = SimpleNamespace(task_result_filters={task + FilterKey.DELIMITER + direction: self.results})

        made = self.contexts.new_context()
        made.set_prop(FLContextKey.FILTER_DIRECTION, direction, private=True, sticky=False)
        made.set_prop(FLContextKey.TASK_NAME, task, private=True, sticky=False)
        made.set_prop(FLContextKey.RUNNER, runner, private=True, sticky=False)
        return made

    def round(self, state, work, number=0, kind="WEIGHTS", task="train"):
        """Return the result's data after all filters; `work` gets and returns a state dict of NumPy arrays."""
        from nvflare.apis.dxo import DXO, from_shareable
        from nvflare.app_common.app_constant import AppConstants

        message = DXO("WEIGHTS", state).to_shareable()
        message.set_header(AppConstants.CURRENT_ROUND, number)
        for one in self.data:
            message = one.process(message, self.context(self.directions[0], task))
        out = []
        thread = threading.Thread(target=lambda: out.append(work(from_shareable(message).data)))
        thread.start()
        thread.join()
        reply = DXO(kind, out[0]).to_shareable()
        for one in self.results:
            reply = one.process(reply, self.context(self.directions[1], task))
        return from_shareable(reply)


def arrays(model):
    return {name: t.detach().numpy().copy() for name, t in model.state_dict().items()}


def working(kind="norm", diff=False):
    def work(data):
        model = apps.make_model(kind)
        model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in data.items()})
        apps.train(model, 0)
        after = arrays(model)
        return {name: after[name] - data[name] for name in after} if diff else after

    return work


def records(folder):
    return [Record.load(path) for path in sorted(folder.glob("*.safetensors"))]


@pytest.mark.parametrize("diff", [False, True])
def test_weights_and_differences_are_recorded_alike_and_replay(tmp_path, diff):
    from medpfl.integrations.nvflare import Recorder

    def made():
        return Recorder(str(tmp_path / "{site}"), truth=True)

    site = Site([made()], [made()])
    state = arrays(apps.make_model())
    for number in range(2):
        sent = site.round(state, working(diff=diff), number, "WEIGHT_DIFF" if diff else "WEIGHTS")
        state = {name: state[name] + v if diff else v for name, v in sent.data.items()}
        state["1.num_batches_tracked"] = np.asarray(state["1.num_batches_tracked"], dtype=np.float64)  # as FedAvg does
    found = records(tmp_path / "site-1")
    assert [one.source.round for one in found] == [0, 1]
    for path, one in zip(sorted((tmp_path / "site-1").glob("*.safetensors")), found, strict=True):
        assert isinstance(one.plan, Plan)
        assert (one.plan.batch_size, one.plan.images, one.plan.epochs, one.plan.momentum) == (4, 18, 2, 0.9)
        assert one.source.framework == "NVIDIA FLARE"
        assert not one.misfits()
        truth = Truth.load(path.parent / "private-truth" / path.name)
        after = replayed(one, truth, "norm")
        for name, value in one.update.tensors.items():
            whole = one.weights.parameters[name] + value
            assert float((after[name] - whole).norm() / value.norm()) < 1e-5
        assert int(one.update.buffers["1.num_batches_tracked"]) == 10 * (one.source.round + 1)
        torch.testing.assert_close(after["1.running_var"], one.update.buffers["1.running_var"])


def test_first_and_last_recorder_show_the_pair_and_name_the_filters_between(tmp_path):
    from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy

    from medpfl.integrations.nvflare import Defense, Recorder

    first, last = (Recorder(str(tmp_path / name)) for name in ("raw", "sent"))
    chain = [first, PercentilePrivacy(50, 0.01), Defense("Clipping(0.02)"), last]
    sent = Site([Recorder(str(tmp_path / "unused"))], chain).round(
        arrays(apps.make_model("relu")), working("relu", diff=True), kind="WEIGHT_DIFF"
    )
    (raw,), (left,) = records(tmp_path / "raw"), records(tmp_path / "sent")
    assert raw.filters == ()
    assert left.filters == (
        "PercentilePrivacy(percentile=50, gamma=0.01, data_kinds=['WEIGHT_DIFF', 'WEIGHTS'])",
        "medpfl.Defense('Clipping(0.02)')",
    )
    assert left.defense == "Clipping(0.02)"
    assert float(left.update.norm()) == pytest.approx(0.02, rel=1e-4)
    assert all(np.array_equal(sent.data[name], t.numpy()) for name, t in left.update.tensors.items())
    assert raw.plan == left.plan
    assert not (tmp_path / "unused").exists()


def test_stock_filters_are_named_with_what_they_take_from_the_message():
    from nvflare.apis.dxo import DXO, MetaKey
    from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy

    from medpfl.inputs.filters import defense_of
    from medpfl.integrations.nvflare.filters import _named

    difference = DXO("WEIGHT_DIFF", {"a": np.zeros(1)}, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: 5})
    found = defense_of([_named(PercentilePrivacy(), difference)], "r", buffers=True)
    assert repr(found.defense) == "PercentilePrivacy(percentile=10, gamma=0.01, steps=5)"
    text = _named(PercentilePrivacy(), DXO("WEIGHTS", {"a": np.zeros(1)}))
    assert defense_of([text], "r", buffers=True).unknown == (text,)


def test_a_filter_behind_the_recorder_is_told(tmp_path, capsys):
    from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy

    from medpfl.integrations.nvflare import Recorder

    site = Site([Recorder(str(tmp_path))], [Recorder(str(tmp_path)), PercentilePrivacy()])
    site.round(arrays(apps.make_model("relu")), working("relu", diff=True), kind="WEIGHT_DIFF")
    assert "data_kinds=['WEIGHT_DIFF', 'WEIGHTS']) acts after this recorder" in capsys.readouterr().err


def test_a_defense_on_weights_needs_the_global_ones_and_keeps_dtypes_and_counters(tmp_path):
    from medpfl.integrations.nvflare import Defense

    state = arrays(apps.make_model())
    sent = Site([Defense("Clipping(0.05)")], [Defense("Clipping(0.05)")]).round(state, working()).data
    moved = np.sqrt(sum(((sent[n] - state[n]) ** 2).sum() for n, _ in apps.make_model().named_parameters()))
    assert moved == pytest.approx(0.05, rel=1e-3)
    assert {n: v.dtype for n, v in sent.items()} == {n: v.dtype for n, v in state.items()}
    assert int(sent["1.num_batches_tracked"]) == 10
    with pytest.raises(InputError, match="task_data_filters too"):
        Site([], [Defense("Clipping(0.05)")], name="another").round(state, working())


def test_a_defense_keeps_its_state_between_rounds():
    from medpfl.integrations.nvflare import Defense

    site = Site([], [Defense("TopK(0.25, feedback=True)")])
    step = {"w": np.array([4, 3, 2, 1], np.float32)}
    start = {"w": np.zeros(4, np.float32)}
    rounds = [site.round(start, lambda _: dict(step), n, "WEIGHT_DIFF").data["w"].tolist() for n in range(2)]
    assert rounds == [[4, 0, 0, 0], [0, 6, 0, 0]]


def test_a_recorder_without_its_partner_or_its_training_stops_nothing(tmp_path, capsys):
    from medpfl.integrations.nvflare import Recorder

    state = arrays(apps.make_model())
    Site([], [Recorder(str(tmp_path))], name="lonely").round(state, working())
    assert "the chain of task data too" in capsys.readouterr().err
    assert not records(tmp_path)
    plan = {"algorithm": "FedAvg", "batch_size": 4, "local_images": 18}
    for options, known in (({}, False), ({"plan": plan}, True)):
        folder = tmp_path / str(known)
        made = [Recorder(str(folder), **options) for _ in range(2)]
        Site(made[:1], made[1:]).round(state, lambda data: {n: v + 1 for n, v in data.items()})
        (one,) = records(folder)
        assert isinstance(one.plan, Plan) == known


def test_validation_is_no_training(tmp_path):
    from medpfl.integrations.nvflare import Recorder

    made = [Recorder(str(tmp_path)) for _ in range(2)]
    Site(made[:1], made[1:]).round(arrays(apps.make_model()), working(), task="submit_model")
    assert not records(tmp_path)


def test_the_servers_recorder_sees_what_the_client_sent(tmp_path, capsys):
    from medpfl.integrations.nvflare import Recorder

    state, work = arrays(apps.make_model()), working()
    client = [Recorder(str(tmp_path / "client")) for _ in range(2)]
    sent = Site(client[:1], client[1:]).round(state, work)
    server = [Recorder(str(tmp_path / "server")) for _ in range(2)]
    Site(server[:1], server[1:], server=True).round(state, lambda _: sent.data)
    (one,), (other,) = records(tmp_path / "client"), records(tmp_path / "server")
    assert all(torch.equal(one.update.tensors[k], other.update.tensors[k]) for k in one.update.tensors)
    assert (one.source.place, other.source.place) == ("client", "server")
    told = capsys.readouterr().err
    assert "the server's record has no training steps" in told
    assert "give plan= to the component" in told


def test_pixels_are_those_that_were_stated(tmp_path):
    from medpfl.core.records.origin import Pixels
    from medpfl.integrations.nvflare import Recorder

    stated = {"mean": [0.5], "std": [0.25]}
    made = [Recorder(str(tmp_path), pixels=stated) for _ in range(2)]
    Site(made[:1], made[1:]).round(arrays(apps.make_model()), working())
    (one,) = records(tmp_path)
    assert (one.pixels, one.pixels.inferred) == (Pixels(mean=(0.5,), std=(0.25,)), False)
    with pytest.raises(InputError, match="all above 0"):
        Recorder("x", pixels={"mean": [0.5], "std": [0.0]})


@pytest.mark.parametrize(
    ("options", "why"),
    [({"defense": "DPSGD"}, "acts on the gradients"), ({"defense": "Nothing"}, "known")],
)
def test_a_defense_that_cannot_act_here_is_refused_with_the_reason(options, why):
    from medpfl.integrations.nvflare import Defense

    with pytest.raises(InputError, match=why):
        Defense(**options)


def test_a_plan_with_unknown_options_is_refused():
    from medpfl.integrations.nvflare import Recorder

    with pytest.raises(InputError, match=r"no option 'batch'; did you mean 'batch_size'\?"):
        Recorder("x", plan={"batch": 3})


@pytest.mark.parametrize("kind", ["WEIGHTS", "WEIGHT_DIFF"])
def test_a_defense_acts_on_weights_of_every_task_unless_tasks_are_given(kind):
    from medpfl.integrations.nvflare import Defense

    start, step = {"w": np.zeros(4, np.float32)}, {"w": np.array([3, 4, 0, 0], np.float32)}
    for task in ("fl_train", "validate"):
        made = [Defense("Clipping(1.0)") for _ in range(2)]
        sent = Site(made[:1], made[1:], name=task).round(start, lambda _: dict(step), 0, kind, task).data["w"]
        assert np.allclose(sent, [0.6, 0.8, 0, 0])
    given = [Defense("Clipping(1.0)", tasks=["train"]) for _ in range(2)]
    sent = Site(given[:1], given[1:], name="given").round(start, lambda _: dict(step), 0, kind, "validate").data["w"]
    assert sent.tolist() == step["w"].tolist()


def test_what_a_defense_cannot_act_on_does_not_leave():
    from medpfl.integrations.nvflare import Defense

    state = arrays(apps.make_model())
    submits = Site([], [Defense("Clipping(1.0)")], name="submits")
    with pytest.raises(InputError, match="as in cross-site evaluation"):
        submits.round(state, working(), task="submit_model")
    with pytest.raises(InputError, match="a whole model"):
        submits.round(state, working(), kind="FL_MODEL")
    scores = submits.round(state, lambda _: {"accuracy": 0.5}, kind="METRICS", task="validate")
    assert scores.data == {"accuracy": 0.5}


def test_a_result_is_never_answered_with_the_weights_of_another_task(tmp_path, capsys):
    from medpfl.integrations.nvflare import Defense, Recorder, tasks

    made = [[Recorder(str(tmp_path), truth=True), Defense("Clipping(1.0)")] for _ in range(2)]
    site, state = Site(*made), arrays(apps.make_model())
    site.round(state, working())
    assert (tasks._tasks, tasks._latest) == ({}, {}), "weights, watch and images are freed with the result"
    site.data = []
    with pytest.raises(InputError, match="global weights are not known"):
        site.round(state, working(), 1)
    assert "the global weights are not known" in capsys.readouterr().err
    assert len(records(tmp_path)) == 1


def test_a_task_that_was_not_ended_is_another_one():
    from nvflare.apis.fl_constant import FLContextKey
    from nvflare.apis.shareable import Shareable

    from medpfl.integrations.nvflare import tasks

    site = Site([], [], name="stale")
    data, result = (site.context(direction) for direction in site.directions)
    for context in (data, result):
        context.set_prop(FLContextKey.TASK_ID, "1", private=True, sticky=False)
    held = tasks.begin(data, {"w": np.zeros(1)}, Shareable())
    assert tasks.task_of(result) is held
    result.set_prop(FLContextKey.TASK_ID, "2", private=True, sticky=False)
    assert tasks.task_of(result) is None
    tasks.end(result)
    assert tasks._tasks == {}


def test_an_error_while_recording_stops_no_flare_client(tmp_path, monkeypatch, capsys):
    from medpfl.integrations.nvflare import Recorder, tasks

    def broken(*_):
        raise TypeError("planted")

    state = arrays(apps.make_model())
    made = [Recorder(str(tmp_path)) for _ in range(2)]
    monkeypatch.setattr(tasks, "tensors_of", broken)
    assert Site(made[:1], made[1:], name="broken").round(state, working()).data.keys() == state.keys()
    assert "will not be recorded: planted" in capsys.readouterr().err
