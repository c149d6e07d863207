"""The contract that every attack must keep, strong or weak; `CONTRIBUTING.md` describes it. Each check takes an attack.

An attack declares in `check` where it applies. The contract asks nothing beyond that.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from medpfl import attacks
from medpfl.attacks import matching
from medpfl.auditing.reconstructed import check_reconstruction
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack
from medpfl.core.spec import build, registry, summary
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Observation, Reconstruction
from medpfl.defenses import LaplaceNoise
from medpfl.federated.ready import prepare
from medpfl.inspection.check import shortened_names
from medpfl.models import ViT
from tests.attacks.elsewhere import Elsewhere, Watch, moved
from tests.attacks.residual import built
from tests.attacks.scenes import scene, smooth, tiny
from tests.contract import every

PLANS = {
    "FedSGD": Plan(),
    "FedSGD of 2": Plan(batch_size=2),
    "FedAvg": Plan(algorithm="FedAvg", batch_size=1, local_images=2, epochs=2),
    "eval": Plan(mode="eval"),
}
LABELS = torch.tensor([[0, 1], [2, 0], [1, 1]])
NETWORKS = (
    tiny,
    lambda channels: ViT(4, depth=1, width=32, heads=2).build((channels, 12, 12), 3, 0),
    lambda channels: built(channels=channels, norm=nn.Identity),
    lambda channels: built(channels=channels, last=True),
)
"""A small convolutional network, a small transformer, two small residual networks, for a number of channels."""
STEPS = 3


def taken(attack: Attack, plan: Plan, channels: int = 1) -> nn.Module | None:
    """Return the first network in `NETWORKS` that the attack's `check` accepts under a plan."""
    number = _number(attack, plan, channels)
    return None if number is None else NETWORKS[number](channels)


@cache
def _number(attack: Attack, plan: Plan, channels: int) -> int | None:
    for number, make in enumerate(NETWORKS):
        with suppress(InputError):
            attack.check(prepare(make(channels), plan), (plan,), (channels, 12, 12))
            return number
    return None


def seen_by(attack: Attack, plan: Plan, channels: int = 1, victims: int = 3, **options) -> tuple[Tensor, Observation]:
    """Return images (V, N, channels, 12, 12), and their observation on a network that the attack accepts."""
    images = smooth(3 * plan.images, channels).view(3, plan.images, channels, 12, 12)[:victims]
    network = taken(attack, plan, channels)
    assert network is not None
    return images, scene(network, images, LABELS[:victims, : plan.images], plan, **options)


@dataclass(frozen=True)
class Run:
    """A run of an attack, for all checks that read one: the observation, the guess, whether anything seen changed."""

    seen: Observation
    guess: Reconstruction
    changed: bool


@cache
def run(attack: Attack, plan: Plan) -> Run:
    """Run an attack that takes a plan, with few steps, once for all checks; none of them changes the result."""
    _, seen = seen_by(attack, plan)
    tensors = [*seen.views[0].update.tensors.values(), *seen.views[0].weights.parameters.values()]
    tensors += [*seen.model.parameters(), *seen.model.buffers()]
    kept = copy.deepcopy([t.detach() for t in tensors])
    guess = shortened_names(attack, STEPS)(seen, torch.Generator().manual_seed(0))
    return Run(seen, guess, not all(torch.equal(one, other) for one, other in zip(tensors, kept, strict=True)))


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def check_its_spec_builds_it(attack: Attack) -> None:
    kind = type(attack)
    known = {**registry(attacks), kind.__name__: kind}
    assert is_dataclass(kind)
    assert kind.__dataclass_params__.frozen, "@dataclass(frozen=True, repr=False)"  # type: ignore[attr-defined]
    assert build(repr(attack), known, "attack", registry(matching)) == attack
    assert kind() == kind(), "every argument has a default"
    assert hash(kind()) == hash(kind())


def check_its_docstring(attack: Attack) -> None:
    line, text = summary(type(attack)), type(attack).__doc__ or ""
    assert 20 < len(line) < 120, "a line that medpfl list shows"
    assert line[0].isupper()
    assert line.endswith(".")
    assert "Needs:" in text, "what the adversary must know"


def check_it_takes_something(attack: Attack) -> None:
    assert any(taken(attack, plan) is not None for plan in PLANS.values()), "check refuses every network and plan"


def check_shapes_range_and_reasons(attack: Attack, plan: Plan) -> None:
    if taken(attack, plan) is None:
        return
    seen, guess = run(attack, plan).seen, run(attack, plan).guess
    check_reconstruction(guess, seen, repr(attack))
    assert guess.guesses.shape == (3, plan.images, 1, 12, 12)
    assert guess.guesses.min() >= 0
    assert guess.guesses.max() <= 1
    assert guess.loss.isfinite().all()
    assert (guess.steps >= 0).all()
    if hasattr(attack, "steps"):
        assert (guess.steps <= STEPS).all()
    assert (guess.evaluations >= guess.steps).all()


def check_random_numbers_are_survived(attack: Attack, plan: Plan) -> None:
    """Every audit also attacks a random update."""
    if taken(attack, plan) is None:
        return
    _, seen = seen_by(attack, plan)
    view, noise = seen.views[0], torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(t.shape, generator=noise) for name, t in view.update.tensors.items()}
    blind = type(view)(view.weights, view.plans, view.update.replace(drawn))
    seen = type(seen)(seen.model, (blind,), seen.image_shape, seen.num_classes)
    check_reconstruction(shortened_names(attack, STEPS)(seen, torch.Generator().manual_seed(0)), seen, repr(attack))


def check_the_generator_is_the_only_source(attack: Attack, plan: Plan) -> None:
    if taken(attack, plan) is None:
        return
    one, (_, seen) = run(attack, plan).guess, seen_by(attack, plan)
    before = torch.random.get_rng_state()
    again = shortened_names(attack, STEPS)(seen, torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before), "it draws from torch's own generator"
    assert torch.equal(one.guesses, again.guesses), "it draws from elsewhere"
    assert same(one.labels, again.labels)
    assert (one.certificates, one.found_by, one.unread) == (again.certificates, again.found_by, again.unread)


def check_what_is_seen_is_not_changed(attack: Attack, plan: Plan) -> None:
    assert taken(attack, plan) is None or not run(attack, plan).changed


def check_it_runs_on_the_device_of_the_update(attack: Attack, granted: bool) -> None:
    plan = next(plan for plan in PLANS.values() if taken(attack, plan, 3) is not None)
    threat, defense = (ThreatModel(("labels", "defense")), LaplaceNoise(1e-3)) if granted else (ThreatModel(), None)
    short = replace(attack, steps=12) if hasattr(attack, "steps") else attack  # type: ignore[type-var]
    _, seen = seen_by(attack, plan, 3, victims=2, threat=threat, defense=defense)
    here = short(seen, torch.Generator().manual_seed(0))
    with Watch():
        there = short(moved(seen), torch.Generator().manual_seed(0))
    assert isinstance(there.guesses, Elsewhere)
    assert torch.allclose(there.guesses.inner, here.guesses, atol=1e-5)
    assert there.ended == here.ended


EVERY = [
    *every(
        (check_its_spec_builds_it, check_its_docstring, check_it_takes_something),
        (
            check_shapes_range_and_reasons,
            check_random_numbers_are_survived,
            check_the_generator_is_the_only_source,
            check_what_is_seen_is_not_changed,
        ),
        PLANS,
    ),
    *(
        pytest.param(check_it_runs_on_the_device_of_the_update, (granted,), id=f"on the device of the update-{name}")
        for name, granted in {"honest": False, "granted": True}.items()
    ),
]
"""Checks of an attack, and what each takes beside it."""
