"""Every member of ``attacks.__all__`` keeps what the role promises. One row an attack."""

from dataclasses import replace

import pytest
import torch
from elsewhere import Elsewhere, Watch, moved
from residual import built
from scenes import scene, smooth, tiny
from torch import nn

from medpfl import attacks
from medpfl.attacks import APRIL, CPL, DLG, RGAP, DeepRGAP, GradientMatching, GradInv, Posterior, iDLG
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.defenses import LaplaceNoise
from medpfl.models import ViT

ROWS = {
    "APRIL": APRIL(),
    "CPL": CPL(steps=150),
    "DLG": DLG(steps=150),
    "DeepRGAP": DeepRGAP(),
    "GradInv": GradInv(steps=800, tv=1e-3),
    "GradientMatching": GradientMatching(steps=150),
    "Posterior": Posterior(steps=200),
    "RGAP": RGAP(),
    "iDLG": iDLG(steps=150),
}
SEARCHES = {name: attack for name, attack in ROWS.items() if hasattr(attack, "restarts")}
PLANS = {
    "FedSGD": Plan(),
    "FedSGD of 2": Plan(batch_size=2),
    "FedAvg": Plan(algorithm="FedAvg", batch_size=1, local_images=2, epochs=2),
    "eval": Plan(mode="eval"),
}
LABELS = torch.tensor([[0, 1], [2, 0], [1, 1]])
NETWORKS = {
    "APRIL": lambda channels: ViT(4, depth=1, width=32, heads=2).build((channels, 12, 12), 3, 0),
    "DeepRGAP": lambda channels: built(channels=channels, norm=nn.Identity),
}
"""Of attacks that do not take the others' network."""


def test_every_attack_has_a_row():
    assert sorted(ROWS) == sorted(attacks.__all__)
    assert all(type(attack).__name__ == name for name, attack in ROWS.items())


def seen_by(plan: Plan, channels: int = 1, attack=None, **options):
    images = smooth(3 * plan.images, channels).view(3, plan.images, channels, 12, 12)
    network = NETWORKS.get(type(attack).__name__, tiny)(channels)
    return images, scene(network, images, LABELS[:, : plan.images], plan, **options)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("attack", ROWS.values(), ids=ROWS)
def test_shapes_range_and_reasons(attack, plan):
    short = type(attack)(**{"steps": 3} if hasattr(attack, "steps") else {})
    _, seen = seen_by(plan, attack=attack)
    if attack not in SEARCHES.values() and plan.images > 1:
        with pytest.raises(InputError, match="one gradient of one image"):
            short(seen, torch.Generator())
        return
    guess = short(seen, torch.Generator().manual_seed(0))
    assert guess.guesses.shape == (3, plan.images, 1, 12, 12)
    assert guess.guesses.min() >= 0
    assert guess.guesses.max() <= 1
    assert guess.labels.shape == (3, plan.images)
    assert guess.loss.shape == guess.steps.shape == guess.evaluations.shape == (3,)
    assert guess.loss.isfinite().all()
    assert (guess.steps <= 3).all()
    assert (guess.evaluations >= guess.steps).all()
    assert set(guess.ended) <= {"converged", "stalled", "max_steps", "nonfinite"}


@pytest.mark.parametrize("attack", ROWS.values(), ids=ROWS)
def test_reads_color_images_back_and_not_from_noise(attack):
    images, seen = seen_by(PLANS["FedSGD"], channels=3, attack=attack)
    guess = attack(seen, torch.Generator().manual_seed(0))
    assert guess.labels[:, 0].tolist() == LABELS[:, 0].tolist()
    error = (guess.guesses - images).square().flatten(1).mean(1)
    assert (error < 0.015).all(), error
    view = seen.views[0]
    noise = torch.Generator().manual_seed(1)
    random = view.update.replace({k: torch.randn(t.shape, generator=noise) for k, t in view.update.tensors.items()})
    blind = attack(
        type(seen)(seen.model, (type(view)(view.weights, view.plans, random),), seen.image_shape, 3),
        torch.Generator().manual_seed(0),
    )
    assert ((blind.guesses - images).square().flatten(1).mean(1) > 0.03).all()


@pytest.mark.parametrize("attack", SEARCHES.values(), ids=SEARCHES)
def test_randomness_is_the_generator_s_alone(attack):
    short = type(attack)(steps=5)
    _, seen = seen_by(PLANS["FedSGD of 2"])
    before = torch.random.get_rng_state()
    one, same, other = (short(seen, torch.Generator().manual_seed(s)).guesses for s in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("attack", [RGAP(), APRIL(), DeepRGAP()], ids=repr)
def test_an_analytic_attack_draws_from_the_generator_alone_and_takes_granted_labels(attack):
    _, seen = seen_by(PLANS["FedSGD"], attack=attack, threat=ThreatModel(("labels",)))
    before = torch.random.get_rng_state()
    one, same = (attack(seen, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.guesses, same.guesses)
    assert torch.equal(one.labels, LABELS[:, :1])


@pytest.mark.parametrize("attack", SEARCHES.values(), ids=SEARCHES)
def test_takes_granted_labels(attack):
    _, seen = seen_by(PLANS["FedSGD of 2"], threat=ThreatModel(("labels",)))
    guess = type(attack)(steps=2)(seen, torch.Generator().manual_seed(0))
    assert torch.equal(guess.labels, LABELS)


@pytest.mark.parametrize("attack", SEARCHES.values(), ids=SEARCHES)
def test_more_restarts_are_no_worse_by_the_attacker_s_own_measure(attack):
    _, seen = seen_by(PLANS["FedSGD"])
    one = type(attack)(steps=4, restarts=1)(seen, torch.Generator().manual_seed(0))
    three = type(attack)(steps=4, restarts=3)(seen, torch.Generator().manual_seed(0))
    assert (three.loss <= 1.05 * one.loss).all()  # four steps of float32 in another stack
    assert three.candidates.shape == (3, 3, 1, 1, 12, 12)
    assert torch.equal(three.candidates[:, 0], three.guesses)


@pytest.mark.parametrize("threat", [ThreatModel(), ThreatModel(("labels", "defense"))], ids=["honest", "granted"])
@pytest.mark.parametrize("attack", [*ROWS.values(), GradInv(restarts=4, halving=0.2)], ids=[*ROWS, "race"])
def test_runs_on_the_device_that_the_update_is_on(attack, threat):
    short = replace(attack, steps=12) if hasattr(attack, "steps") else attack
    defense = LaplaceNoise(1e-3) if "defense" in threat.grants else None
    _, seen = seen_by(PLANS["FedSGD"], channels=3, attack=attack, threat=threat, defense=defense)
    here = short(seen, torch.Generator().manual_seed(0))
    with Watch():
        there = short(moved(seen), torch.Generator().manual_seed(0))
    assert isinstance(there.guesses, Elsewhere)
    assert torch.allclose(there.guesses.inner, here.guesses, atol=1e-5)
    assert there.ended == here.ended


@pytest.mark.parametrize(
    "mixed",
    [
        lambda there: there + torch.ones(3),
        lambda there: torch.stack([there.sum(), torch.zeros(())]),
        lambda there: torch.ones(3)[there.long()],
        lambda there: torch.ones(()).add_(there.sum()),
        lambda there: torch.rand(3, generator=torch.Generator(), device=there.device),
    ],
)
def test_the_device_of_these_tests_refuses_what_a_gpu_refuses(mixed):
    with Watch(), pytest.raises(RuntimeError, match=r"two devices|another device"):
        mixed(Elsewhere(torch.zeros(3)))
