"""No attack can reach the target images: every object within its reach is searched for private images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medpfl import Observation, Plan, ThreatModel
from medpfl.auditing.victims import draw_victims
from medpfl.data.partition import IID
from medpfl.runs.environment import generator_of, seed_of
from tests.auditing.audit_cases import Answers, some_images, tiny


def reachable(root: Any) -> Iterator[Tensor]:
    """Return all tensors within an object's reach, through attributes, items and closures."""
    todo, seen = [root], set()
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, str | bytes | int | float | type):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
            todo.append(value.grad)
        if isinstance(value, Mapping):
            todo += [*value.keys(), *value.values()]
        if isinstance(value, list | tuple | set | frozenset):
            todo += value
        todo += list(getattr(value, "__dict__", {}).values())
        for cell in getattr(value, "__closure__", None) or ():
            todo.append(cell.cell_contents)
        if hasattr(value, "__self__"):
            todo.append(value.__self__)


def holds(tensor: Tensor, images: Tensor) -> bool:
    """Return True if a tensor holds one of the images (N, 1, 16, 16) in any shape."""
    size = images[0].numel()
    if tensor.numel() % size or not tensor.is_floating_point():
        return False
    parts = tensor.detach().reshape(-1, size).float()
    return any(bool((parts - image.flatten()).abs().amax(1).lt(1e-3).any()) for image in images)


def said(root: Any) -> Iterator[str]:
    """Return all numbers and texts within an object's reach (attributes, items, closures) as texts."""
    todo, seen = [root], set()
    while todo:
        value = todo.pop()
        if isinstance(value, str | bytes | int | float):
            yield str(value)
            continue
        if id(value) in seen or isinstance(value, type):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Generator):
            yield str(value.initial_seed())
        if isinstance(value, Tensor) and value.numel() < 10_000 and not value.is_floating_point():
            todo += value.detach().flatten().tolist()
        if isinstance(value, Mapping):
            todo += [*value.keys(), *value.values()]
        if isinstance(value, list | tuple | set | frozenset):
            todo += value
        todo += list(getattr(value, "__dict__", {}).values())
        slots = getattr(type(value), "__slots__", ())
        todo += [getattr(value, name, None) for name in ([slots] if isinstance(slots, str) else slots)]
        todo += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        if hasattr(value, "__self__"):
            todo.append(value.__self__)


class Keeps(nn.Module):
    """A network that keeps its inputs, as some do for class activation maps."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(256, 2)
        self.register_buffer("feature", torch.zeros(1))

    def forward(self, x):
        self.input = x
        self.feature = x.detach()
        return self.last(x.flatten(1))


class Net(nn.Sequential):
    def __init__(self):
        norm = nn.BatchNorm2d(1)
        super().__init__(norm, nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 8), nn.Sigmoid(), nn.Linear(8, 2))


def victims_of(data, images, plan) -> Tensor:
    return torch.cat(draw_victims(data, images, plan.images, IID(), generator_of(0, "victims")))


def seen_by_attack(model, plan, grants=(), **options) -> tuple[list[Observation], Tensor, Any]:
    data, attack = some_images(20), Answers()
    torch.manual_seed(0)
    model = model() if isinstance(model, type) else model
    tiny(data, model=model, plan=plan, attacks=[attack], threat=ThreatModel(grants), **options)
    private = data.images[victims_of(data, 4, plan)]
    assert holds(private.flatten(), private), "the search would find it"
    return attack.kept, private, data


PLANS = [
    Plan(),
    Plan(batch_size=2, mode="eval"),
    Plan(batch_size=2),
    Plan("FedAvg", batch_size=1, local_images=2, epochs=2),
]
ALL = ("labels", "order", "masks", "defense", "auxiliary", "active")


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS, ids=repr)
@pytest.mark.parametrize("grants", [(), ALL])
@pytest.mark.parametrize("model", ["LeNet('idlg')", Net, Keeps])
def test_no_private_image_is_within_reach(model, plan, grants):
    kept, private, _ = seen_by_attack(model, plan, grants, defenses=["LaplaceNoise(scale=0.1)"])
    told = 1 if "defense" in grants else 2
    assert len(kept) == 2 + told, "a random update, the undefended control, and the defense, untold and told of it"
    for seen in kept:
        tensors = list(reachable(seen))
        assert len(tensors) > 4
        assert not [t.shape for t in tensors if holds(t, private)]


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS, ids=repr)
def test_what_is_not_on_the_wire_is_not_there_unless_granted(plan):
    kept, _, _ = seen_by_attack(Net, plan)
    for seen in kept:
        assert (seen.labels, seen.order, seen.masks, seen.auxiliary) == (None,) * 4
        assert [view.channel for view in seen.views] == [None]
        assert not [k for k in seen.model.state_dict() if k.endswith("mask") and seen.model.state_dict()[k].numel() > 1]


@pytest.mark.slow
def test_buffers_are_there_only_if_they_are_sent():
    for sends, expected in ((("num_samples", "buffers"), True), (("num_samples",), False)):
        kept, _, _ = seen_by_attack(Net, Plan(batch_size=2, sends=sends))
        assert all((view.update.buffers is not None) is expected for seen in kept for view in seen.views)
    kept, _, _ = seen_by_attack(Net, Plan(batch_size=2, sends=()))
    assert {view.update.num_samples for seen in kept for view in seen.views} == {None}


@pytest.mark.slow
def test_an_attack_gets_an_observation_and_a_generator_and_no_more():
    given = []

    @dataclass(frozen=True, repr=False)
    class Looks(Answers):
        def __call__(self, *args, **kwargs):
            given.append((args, kwargs))
            return super().__call__(*args, **kwargs)

    tiny(some_images(8), attacks=[Looks()])
    for args, kwargs in given:
        assert [type(a) for a in args] == [Observation, torch.Generator]
        assert kwargs == {}


@pytest.mark.slow
def test_the_attack_s_generator_is_not_the_client_s():
    """The client's generator would reproduce its order, masks and noise."""
    seeds = []

    @dataclass(frozen=True, repr=False)
    class Looks(Answers):
        def __call__(self, seen, generator):
            seeds.append(generator.initial_seed())
            return super().__call__(seen, generator)

    tiny(some_images(8), attacks=[Looks()], memory=1e-6)
    clients = {seed_of(0, "client", 0, number) for number in range(4)}
    assert len(seeds) == 5
    assert clients.isdisjoint(seeds)
    assert len(set(seeds[1:])) == 4, "every stack starts anew"


@pytest.mark.slow
def test_the_seed_of_the_run_is_not_within_reach():
    """Whoever has the seed can draw a client's noise again, and the hash of a small seed can be found by trial."""
    found: dict[int, list[tuple[int, set[str]]]] = {}

    @dataclass(frozen=True, repr=False)
    class Looks(Answers):
        def __call__(self, seen, generator):
            found[run].append((generator.initial_seed(), {*said((self, seen, generator))}))
            return super().__call__(seen, generator)

    for run in (7_203_685_477_580_311, 5_203_685_477_580_313):
        found[run] = []
        tiny(some_images(8), attacks=[Looks()], defenses=["LaplaceNoise(scale=0.1)"], threat=ThreatModel(ALL), seed=run)
        words = [("client", 0, n) for n in range(8)] + [("victims",), ("weights", 0), ("model", 0, "NoDefense()")]
        secret = {str(run), *(str(seed_of(run, *each)) for each in words)}
        assert len(found[run]) == 3
        for _, reached in found[run]:
            assert len(reached) > 20, "the search finds something"
            assert not [text for text in reached if any(one in text for one in secret)]
    first, second = ([seed for seed, _ in each] for each in found.values())
    assert first == second, "an attack's generator says nothing of the run's seed"


@pytest.mark.slow
def test_an_attack_cannot_change_what_the_next_one_sees():
    """The attack writes into its network and weights."""

    @dataclass(frozen=True, repr=False)
    class Writes(Answers):
        def __call__(self, seen, generator):
            with torch.no_grad():
                for parameter in seen.model.parameters():
                    parameter.zero_()
            return super().__call__(seen, generator)

    first, second = Answers(), Answers(0.25)
    tiny(some_images(8), attacks=[first, Writes(), second])
    for name, tensor in first.kept[-1].views[0].update.tensors.items():
        assert torch.equal(tensor, second.kept[-1].views[0].update.tensors[name])
        assert second.kept[-1].views[0].weights.parameters[name].abs().sum() > 0
