"""The next global model: a mean weighted by sample numbers, for gradients and for weight differences."""

from __future__ import annotations

import pytest
import torch

from medpfl.core.plan import Plan
from medpfl.core.types import Update, Weights
from medpfl.federated.server import aggregate

COUNTS = (1, 3, 6)


def weights():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)  # noqa: E731
    return Weights({"w": draw(2, 3), "b": draw(2)}, {"mean": draw(2), "batches": torch.tensor(7)})


def updates(kind, counts=COUNTS, buffers=True):
    made = []
    for seed, count in enumerate(counts, 1):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape, generator=generator: torch.randn(shape, dtype=torch.float64, generator=generator)  # noqa: E731
        sent = {"mean": draw(2), "batches": torch.tensor(8)} if buffers else None
        made.append(Update({"w": draw(2, 3), "b": draw(2)}, kind, sent, count))
    return made


@pytest.mark.parametrize(("kind", "step"), [("gradient", -0.25), ("difference", 1.0)])
def test_weighted_mean(kind, step):
    old, sent = weights(), updates(kind)
    new = aggregate(old, sent, learning_rate=0.25)
    for name, value in old.parameters.items():
        mean = sum(n * u.tensors[name] for n, u in zip(COUNTS, sent, strict=True)) / 10
        assert torch.allclose(new.parameters[name], value + step * mean, atol=1e-14)
        assert new.parameters[name].dtype == torch.float64
    mean = sum(n * u.buffers["mean"] for n, u in zip(COUNTS, sent, strict=True)) / 10
    assert torch.allclose(new.buffers["mean"], mean, atol=1e-14)
    assert new.buffers["batches"] == 8
    assert new.buffers["batches"].dtype == torch.int64


def test_plain_mean_where_no_numbers_are_sent():
    old, sent = weights(), updates("difference", (None, None, None))
    mean = sum(u.tensors["w"] for u in sent) / 3
    assert torch.allclose(aggregate(old, sent).parameters["w"], old.parameters["w"] + mean, atol=1e-14)


def test_one_gradient_is_a_step_down():
    old, (sent,) = weights(), updates("gradient", (5,))
    assert torch.allclose(aggregate(old, [sent]).parameters["b"], old.parameters["b"] - sent.tensors["b"])


def test_buffers_stay_where_not_all_send_them():
    old, sent = weights(), updates("difference")
    sent[1] = Update(sent[1].tensors, "difference", None, 3)
    new = aggregate(old, sent)
    assert torch.equal(new.buffers["mean"], old.buffers["mean"])
    assert torch.equal(aggregate(old, updates("difference", buffers=False)).buffers["batches"], torch.tensor(7))


def test_the_old_weights_are_not_changed():
    old = weights()
    before = {k: t.clone() for k, t in (*old.parameters.items(), *old.buffers.items())}
    aggregate(old, updates("difference"))
    assert all(torch.equal(t, before[k]) for k, t in (*old.parameters.items(), *old.buffers.items()))


def test_the_mean_of_gradients_is_the_gradient_of_all_images():
    from medpfl.core.types import Batch
    from medpfl.federated.local import local_update
    from medpfl.federated.ready import prepare
    from tests.federated.networks import batch, gap, network

    model, whole = network("plain"), batch(6)
    old = Weights.of(model)

    def gradient(first, last):
        plan = Plan(batch_size=last - first)
        sent = local_update(prepare(model, plan), Batch(whole.images[first:last], whole.labels[first:last]), plan, old)
        return Update(sent.tensors, "gradient", None, last - first)

    apart = aggregate(old, [gradient(0, 1), gradient(1, 6)], 0.1)
    assert gap(dict(apart.parameters), dict(aggregate(old, [gradient(0, 6)], 0.1).parameters)) < 1e-14
