"""No target image passes into an observation: everything within its reach is searched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medpfl.core.plan import Plan
from medpfl.core.threat import GRANTS, ThreatModel
from medpfl.core.types import Batch, Channel, Observation, Update, Weights
from medpfl.defenses import LaplaceNoise
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare
from medpfl.federated.server import observe
from tests.federated.networks import seeded

PLAN = Plan("FedAvg", 2, 6, epochs=2, learning_rate=0.3)
CLASSES = 10
LABELS = torch.tensor([[7, 3, 9, 2, 5, 8], [4, 9, 1, 6, 3, 7], [8, 2, 6, 9, 4, 1]])
IMAGES = torch.rand(3, 6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
OTHERS = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
FIELDS = {"labels": "labels", "order": "order", "masks": "masks", "auxiliary": "auxiliary", "defense": "channel"}


def reachable(thing: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Yield every tensor within a value's reach: fields, items, modules, closures, defaults, bound objects."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, str | bytes | int | float | bool | type | None):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        if thing.grad_fn is not None:
            yield from (v for v in (getattr(thing.grad_fn, "variable", None),) if v is not None)
        return
    inside: list[Any] = []
    if isinstance(thing, Mapping):
        inside += [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        inside += list(thing)
    inside += list(getattr(thing, "__dict__", {}).values())
    inside += [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
    inside += list(getattr(thing, "__defaults__", None) or ())
    inside += [getattr(thing, "__self__", None)]
    for one in inside:
        yield from reachable(one, seen)


def holds(tensors: list[Tensor], secret: Tensor) -> bool:
    """Return True if any of them is, contains or shares memory with a secret; rows are compared one by one."""
    storage, row = secret.untyped_storage().data_ptr(), secret.flatten()
    for tensor in tensors:
        if tensor.numel() and tensor.untyped_storage().data_ptr() == storage:
            return True
        if tensor.numel() and tensor.numel() % row.numel() == 0:
            rows = tensor.detach().reshape(-1, row.numel()).to(row.dtype)
            if torch.isclose(rows, row, atol=1e-6).all(1).any():
                return True
    return False


def network() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, CLASSES)
        )
    ).float()


MODEL = network()
READY, WEIGHTS = prepare(MODEL, PLAN), Weights.of(MODEL)


def rounds(defense, plan=PLAN, ready=READY):
    return [
        client_round(ready, WEIGHTS, Batch(x, y), plan, defense, defense.init(), torch.Generator().manual_seed(v))
        for v, (x, y) in enumerate(zip(IMAGES, LABELS, strict=True))
    ]


DEFENSE = LaplaceNoise(0.01) | LaplaceNoise(0.02)
ROUNDS = rounds(DEFENSE)


def look(*grants: str, played=ROUNDS, **options) -> Observation:
    options = {"defense": DEFENSE, "image_shape": (1, 8, 8), "num_classes": CLASSES, "auxiliary": OTHERS} | options
    return observe(READY, WEIGHTS, PLAN, played, ThreatModel(grants), **options)


def granted(seen: Observation) -> set[str]:
    fields = {f: getattr(seen, f) for f in ("labels", "order", "masks", "auxiliary")}
    fields["channel"] = seen.views[0].channel
    return {name for name, value in fields.items() if value is not None}


def secrets(names: str) -> list[Tensor]:
    return {
        "images": [*IMAGES, *IMAGES.flatten(0, 1), *(client.batch.images for client in ROUNDS)],
        "labels": [client.batch.labels for client in ROUNDS] + list(LABELS),
        "order": [client.draws.order[0] for client in ROUNDS],
        "masks": [mask[0, 0] for client in ROUNDS for mask in client.draws.masks.values()],
        "auxiliary": list(OTHERS),
        "raw": [t for client in ROUNDS for t in client.raw.tensors.values() if t.numel() > 4],
    }[names]  # fmt: skip


def test_the_search_finds_what_is_hidden():
    image = IMAGES[1, 2]

    def closure(tensors, hidden=image):
        return tensors

    def over(tensors):
        return image

    module = nn.Linear(2, 2)
    module.register_buffer("truth", image.clone())
    hidden = [
        {"a": [Batch(IMAGES[1], LABELS[1])]},
        Channel(closure),
        Channel(over),
        module,
        torch.stack([OTHERS[0], image]),
        image[0, 0, :2],  # shares memory
        image.double().flatten(),
        Batch(IMAGES, LABELS).__len__,
    ]
    for place in hidden:
        assert holds(list(reachable(place)), image), place
    assert not holds(list(reachable([OTHERS, LABELS, closure.__code__])), image)


@pytest.mark.parametrize("grants", [(), *((g,) for g in GRANTS), tuple(GRANTS)], ids=str)
def test_images_and_raw_updates_are_never_in_an_observation(grants):
    tensors = list(reachable(look(*grants)))
    assert len(tensors) > 20
    for image in secrets("images"):
        assert not holds(tensors, image)
    for raw in secrets("raw"):
        assert not holds(tensors, raw)


@pytest.mark.parametrize("secret", ["labels", "order", "masks", "auxiliary"])
def test_what_is_not_on_the_wire_is_there_by_its_own_grant_only(secret):
    others = tuple(g for g in GRANTS if g != secret)
    without, only = list(reachable(look(*others))), list(reachable(look(secret)))
    assert not any(holds(without, one) for one in secrets(secret))
    assert all(holds(only, one) for one in secrets(secret))


@pytest.mark.parametrize("grant", GRANTS)
def test_each_grant_adds_its_field(grant):
    assert granted(look()) == set()
    assert granted(look(grant)) == ({FIELDS[grant]} if grant in FIELDS else set())
    assert granted(look(*GRANTS)) == set(FIELDS.values())


def test_what_is_on_the_wire_is_seen():
    seen = look()
    (view,) = seen.views
    assert (len(seen), seen.num_images, seen.image_shape, seen.num_classes) == (3, 6, (1, 8, 8), CLASSES)
    assert view.plans == (PLAN,)
    assert view.weights is WEIGHTS
    assert (view.update.kind, view.update.num_samples) == ("difference", 6)
    for v, client in enumerate(ROUNDS):
        assert all(torch.equal(t[v], client.sent.tensors[k]) for k, t in view.update.tensors.items())
        assert all(torch.equal(t[v], client.sent.buffers[k]) for k, t in view.update.buffers.items())
    assert "1.running_var" in view.update.buffers


def test_granted_values_are_the_clients():
    seen = look("labels", "order", "masks")
    assert torch.equal(seen.labels, LABELS)
    assert seen.order.shape == (3, 2, 6)
    assert seen.masks["4"].shape == (3, 6, 2, 144)
    for v, client in enumerate(ROUNDS):
        assert torch.equal(seen.order[v], client.draws.order)
        assert torch.equal(seen.masks["4"][v], client.draws.masks["4"])


def test_the_channel_is_what_the_defense_discloses_of_the_sent_update():
    class Asked(LaplaceNoise):
        def disclose(self, sent, plan=None, before=None):
            assert any(sent is client.sent for client in ROUNDS)
            return Channel(precision={"asked": torch.ones(2)})

    channel = look("defense", defense=Asked()).views[0].channel
    assert channel.precision["asked"].shape == (3, 2)
    disclosed = look("defense").views[0].channel.precision["5.bias"]
    assert disclosed.shape == (3, CLASSES)
    assert disclosed.mean().item() == pytest.approx(1 / (2 * 0.01**2 + 2 * 0.02**2), rel=1e-4)


def test_grants_of_what_there_is_not():
    plan = Plan(batch_size=6, mode="eval")
    ready = prepare(MODEL, plan)
    played = rounds(DEFENSE, plan, ready)
    seen = observe(
        ready, WEIGHTS, plan, played, ThreatModel(("order", "masks", "auxiliary")),
        defense=DEFENSE, image_shape=(1, 8, 8), num_classes=CLASSES,
    )  # fmt: skip
    assert granted(seen) == set()
    assert seen.views[0].update.kind == "gradient"


def test_no_field_was_forgotten():
    assert {f.name for f in dataclasses.fields(Observation)} == {
        "model", "views", "image_shape", "num_classes", "labels", "order", "masks", "auxiliary",
        "label_shape",  # of the model's own outputs, which are public
        "gray",  # a public fact about all images
    }  # fmt: skip
    assert {f.name for f in dataclasses.fields(Update)} == {
        "tensors", "kind", "buffers", "num_samples",
        "buffers_before",  # which the server itself sent
    }  # fmt: skip
