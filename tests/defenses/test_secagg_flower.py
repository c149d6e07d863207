"""The SecAgg+ model against Flower's own protocol, run in this process."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from medpfl.core.errors import InputError
from medpfl.core.types import Update
from medpfl.defenses import SecAggPlus

pytestmark = [pytest.mark.extra, pytest.mark.filterwarnings("ignore:.*Click 9.0:DeprecationWarning")]

SHAPES = {"w": (7, 3), "b": (4,)}


@pytest.fixture(autouse=True)
def flower(monkeypatch):
    """Return Flower without its telemetry, with roundings from a generator, in the clients' order."""
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # as Flower's own simulation sets them
    rounding = torch.Generator().manual_seed(1)
    monkeypatch.setattr(
        np.random, "rand", lambda *shape: torch.rand(shape, generator=rounding, dtype=torch.float64).numpy()
    )


def updates(samples, scale=1.0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)

    def tensors(shapes):
        return {k: (scale * torch.randn(shape, generator=draw)).to(dtype) for k, shape in shapes.items()}

    return [Update(tensors(SHAPES), "difference", tensors({"mean": (2,)}), n) for n in samples]


def arrays_of(update):
    return [t.numpy() for t in (*update.tensors.values(), update.buffers["mean"])]


def flat(arrays):
    return np.concatenate([np.ravel(array) for array in arrays])


class Federation:
    """Clients 1, 2, ... under Flower's mod, a server under its workflow, and a readable wire between them.

    Attributes:
        masked: the vectors that the server received, by node.
        clear: the numbers of examples that the server received, by node.
        result: the arrays passed to the strategy, or ``None`` if the round was lost.
    """

    def __init__(self, updates, silent):
        self.updates, self.silent = updates, silent
        self.masked, self.clear, self.result = {}, {}, None
        self.contexts = {node: self._context(node) for node in range(1, len(updates) + 1)}

    @staticmethod
    def _context(node):
        from flwr.app import Context, RecordDict

        return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})

    def run(self, **settings):
        from flwr.app import ArrayRecord, ConfigRecord
        from flwr.server import LegacyContext
        from flwr.server.workflow import SecAggPlusWorkflow

        context = self._context(0)
        context.state.config_records["config"] = ConfigRecord({"current_round": 1})
        context.state.array_records["parameters"] = ArrayRecord([np.zeros(1)])
        SecAggPlusWorkflow(**settings)(self, LegacyContext(context, strategy=self))
        return self

    # The strategy
    def configure_fit(self, server_round, parameters, client_manager):
        from flwr.common import FitIns

        return [(SimpleNamespace(node_id=node), FitIns(parameters, {})) for node in self.contexts]

    def aggregate_fit(self, server_round, results, failures):
        from flwr.common import parameters_to_ndarrays

        self.result, self.counted = parameters_to_ndarrays(results[0][1].parameters), len(results)
        return None, {}

    # The wire
    def send_and_receive(self, messages, timeout=None):
        return [self._reply(copy.deepcopy(message)) for message in messages]

    def _reply(self, message):
        from flwr.app import Error, Message
        from flwr.client.mod import secaggplus_mod
        from flwr.common import bytes_to_ndarray

        node = message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = "one"  # as a transport would number it
        collected = message.content.config_records["secaggplus_configs"]["stage"] == "collect_masked_vectors"
        reply = secaggplus_mod(message, self.contexts[node], self._fit)
        if collected and node in self.silent:  # it worked, and fell silent
            return Message(Error(code=0, reason="silent"), reply_to=message)
        if collected:
            assert all(not record for record in reply.content.array_records.values()), "nothing goes unmasked"
            masked = reply.content.config_records["secaggplus_configs"]["masked_params"]
            self.masked[node] = flat(bytes_to_ndarray(part) for part in masked)
            self.clear[node] = reply.content.metric_records["fitres.num_examples"]["num_examples"]
        return reply

    def _fit(self, message, context):
        from flwr.app import Message
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
        from flwr.compat.common.recorddict_compat import fitres_to_recorddict

        own = self.updates[context.node_id - 1]
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays_of(own)), own.num_samples, {})
        return Message(fitres_to_recorddict(result, keep_input=False), reply_to=message)


def both(sent, defense):
    """Return our result and Flower's, with the same settings, roundings and silent clients."""
    ours = defense.exchange(sent, torch.Generator().manual_seed(1))
    theirs = Federation(sent, {place + 1 for place in ours.dropped}).run(
        num_shares=defense.shares or len(sent),
        reconstruction_threshold=defense.threshold,
        max_weight=defense.max_weight,
        clipping_range=defense.clip,
        quantization_range=defense.levels,
        modulus_range=defense.modulus,
    )
    return ours, theirs


SETTINGS = {
    "all neighbors": SecAggPlus(max_weight=100.0),
    "a ring": SecAggPlus(2, 3, max_weight=100.0),
    "a dropout": SecAggPlus(3, max_weight=100.0, dropouts=1),
    "a dropout from a ring": SecAggPlus(2, 3, max_weight=100.0, dropouts=1),
    "as many dropouts as can be": SecAggPlus(3, max_weight=100.0, dropouts=2),
    "few levels": SecAggPlus(clip=0.5, max_weight=40.0, levels=200, modulus=2**12),
}


@pytest.mark.parametrize("defense", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("scale", [0.1, 50.0])  # the latter is clipped
def test_the_mean_is_that_of_flowers_protocol(defense, scale):
    sent = updates((10, 25, 40, 5, 31), scale)
    ours, theirs = both(sent, defense)
    assert theirs.result is not None
    assert theirs.counted == 5 - len(ours.dropped) == 5 - defense.dropouts
    assert np.allclose(flat(arrays_of(ours.mean)), flat(theirs.result), rtol=0, atol=1e-9)
    assert [array.shape for array in arrays_of(ours.mean)] == [array.shape for array in theirs.result]


@pytest.mark.parametrize("modulus", [2**24, 2**32])
def test_what_the_server_sees_of_one_client_is_alike(modulus):
    defense = SecAggPlus(max_weight=100.0, modulus=modulus, dropouts=1)
    sent = updates((10, 25, 40))
    sent = [u.replace({**u.tensors, "w": u.tensors["w"].repeat(100, 100)}) for u in sent]
    ours, theirs = both(sent, defense)
    assert {place + 1 for place in ours.masked} == set(theirs.masked)
    for place, own in ours.masked.items():
        other = theirs.masked[place + 1]
        assert own.values.shape == other.shape
        assert own.num_samples == theirs.clear[place + 1] == sent[place].num_samples
        for values in (own.values.numpy(), other):
            assert 0 <= values.min() < values.max() < own.modulus == modulus
            assert stats.kstest(values / modulus, "uniform").pvalue > 1e-6  # Flower's keys are new in every run


def test_single_precision_is_rounded_a_second_time_and_no_more():
    """Flower multiplies in the parameters' precision, and float32 keeps little below the integers."""
    defense = SecAggPlus(max_weight=100.0)
    ours, theirs = both(updates((10, 25, 40), dtype=torch.float32), defense)
    step = 2 * defense.clip / defense.levels
    error = np.abs(flat(arrays_of(ours.mean)) - flat(theirs.result)).max()
    assert error <= 3 * step / (75 / 100.0) + 1e-6


def test_below_the_threshold_both_lose_the_round():
    sent = updates((10, 25, 40, 5, 31))
    with pytest.raises(InputError, match="the round is lost"):
        SecAggPlus(4, dropouts=2).exchange(sent, torch.Generator().manual_seed(1))
    theirs = Federation(sent, {2, 4}).run(num_shares=5, reconstruction_threshold=4)
    assert theirs.result is None
    assert set(theirs.masked) == {1, 3, 5}


def test_flowers_masks_come_of_32_bits_of_their_secrets():
    """The docstring's claim about the real masks: different 256-bit secrets can give the same one."""
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    word, zeros = (123456789).to_bytes(4, "little"), bytes(28)
    masks = [pseudo_rand_gen(secret, 2**32, [(50,)])[0] for secret in (word + zeros, zeros + word)]
    assert np.array_equal(*masks)
    assert np.array_equal(masks[0], np.random.RandomState(123456789).randint(0, 2**32 - 1, 50, dtype=np.int64))
