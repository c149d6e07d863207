"""The built-in attacks reconstruct images, use grants, gain from restarts, and refuse updates they cannot invert."""

import pytest
import torch

from medpfl.attacks import APRIL, CPL, DLG, RGAP, DeepRGAP, GradientMatching, GradInv, Posterior, iDLG
from medpfl.core.errors import InputError
from medpfl.core.threat import ThreatModel
from tests.attacks.attack_contract import LABELS, PLANS, check_it_runs_on_the_device_of_the_update, run, seen_by, taken
from tests.attacks.elsewhere import Elsewhere, Watch
from tests.attacks.scenes import scene, smooth

ANALYTIC = {"APRIL": APRIL(), "DeepRGAP": DeepRGAP(), "RGAP": RGAP()}
SEARCHES = {
    "CPL": CPL(steps=100),
    "DLG": DLG(steps=100),
    "GradInv": GradInv(steps=250, tv=1e-3),
    "GradientMatching": GradientMatching(steps=100),
    "Posterior": Posterior(steps=120),
    "iDLG": iDLG(steps=100),
}
BUILT_IN = {**ANALYTIC, **SEARCHES}


@pytest.mark.slow
@pytest.mark.parametrize("attack", BUILT_IN.values(), ids=BUILT_IN)
def test_reads_color_images_back_and_not_from_noise(attack):
    images, seen = seen_by(attack, PLANS["FedSGD"], channels=3)
    guess = attack(seen, torch.Generator().manual_seed(0))
    assert guess.labels.tolist() == LABELS[:, :1].tolist()
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


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("attack", BUILT_IN.values(), ids=BUILT_IN)
def test_says_labels_of_what_it_takes_and_refuses_the_rest(attack, plan):
    plain = type(attack)()
    if attack in ANALYTIC.values() and plan.images > 1 and taken(attack, plan) is None:
        _, one = seen_by(attack, PLANS["FedSGD"])
        images = smooth(3 * plan.images).view(3, plan.images, 1, 12, 12)
        seen = scene(one.model, images, LABELS[:, : plan.images], plan)
        with pytest.raises(InputError, match=r"one gradient of one (image|batch)"):
            plain(seen, torch.Generator())
        return
    assert run(plain, plan).guess.labels.shape == (3, plan.images)


@pytest.mark.slow
@pytest.mark.parametrize("attack", SEARCHES.values(), ids=SEARCHES)
def test_another_seed_is_another_search(attack):
    _, seen = seen_by(attack, PLANS["FedSGD of 2"])
    one, other = (type(attack)(steps=5)(seen, torch.Generator().manual_seed(s)).guesses for s in (4, 5))
    assert not torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ANALYTIC.values(), ids=ANALYTIC)
def test_an_analytic_attack_takes_granted_labels(attack):
    _, seen = seen_by(attack, PLANS["FedSGD"], threat=ThreatModel(("labels",)))
    before = torch.random.get_rng_state()
    one, same = (attack(seen, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.guesses, same.guesses)
    assert torch.equal(one.labels, LABELS[:, :1])


@pytest.mark.parametrize("attack", SEARCHES.values(), ids=SEARCHES)
def test_takes_granted_labels(attack):
    _, seen = seen_by(attack, PLANS["FedSGD of 2"], threat=ThreatModel(("labels",)))
    guess = type(attack)(steps=2)(seen, torch.Generator().manual_seed(0))
    assert torch.equal(guess.labels, LABELS)


@pytest.mark.slow
@pytest.mark.parametrize("attack", SEARCHES.values(), ids=SEARCHES)
def test_more_restarts_are_no_worse_by_the_attacker_s_own_measure(attack):
    _, seen = seen_by(attack, PLANS["FedSGD"])
    one = type(attack)(steps=4, restarts=1)(seen, torch.Generator().manual_seed(0))
    three = type(attack)(steps=4, restarts=3)(seen, torch.Generator().manual_seed(0))
    assert (three.loss <= 1.05 * one.loss).all()  # four steps of float32 in another stack
    assert three.candidates.shape == (3, 3, 1, 1, 12, 12)
    assert torch.equal(three.candidates[:, 0], three.guesses)


@pytest.mark.slow
@pytest.mark.parametrize("granted", [False, True], ids=["honest", "granted"])
def test_a_race_runs_on_the_device_that_the_update_is_on(granted):
    check_it_runs_on_the_device_of_the_update(GradInv(restarts=4, halving=0.2), granted)


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
