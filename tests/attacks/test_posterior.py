import pytest
import torch
from scenes import scene, smooth, tiny

from medpfl.attacks import Posterior, iDLG
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.defenses import QSGD, GaussianNoise, LaplaceNoise

LABELS = torch.tensor([[0], [2], [1]])


def errors(attack, defense, granted=("defense",), plan=None):
    plan = plan or Plan()
    images = smooth(3 * plan.images, 3).view(3, plan.images, 3, 12, 12)
    labels = LABELS.expand(-1, plan.images)
    seen = scene(tiny(3), images, labels, plan, defense=defense, threat=ThreatModel(granted))
    guess = attack(seen, torch.Generator().manual_seed(0))
    return (guess.guesses - images).square().flatten(1).mean(1), guess


@pytest.mark.parametrize("defense", [LaplaceNoise(0.01), QSGD(16)], ids=repr)
def test_reads_through_noise_what_a_match_does_not(defense):
    ours, _ = errors(Posterior(steps=250), defense)
    theirs, _ = errors(iDLG(steps=250), defense)
    assert (ours < 0.03).all(), ours
    assert ours.mean() < 0.5 * theirs.mean()


def test_ends_at_the_noise_and_not_below():
    _, guess = errors(Posterior(steps=250), GaussianNoise(0.02))
    assert ((guess.loss > 0.35) & (guess.loss < 1.0)).all(), guess.loss


def test_an_estimate_of_the_noise_is_nearly_as_good_as_the_grant():
    naive, _ = errors(Posterior(steps=250), GaussianNoise(0.02), granted=())
    told, _ = errors(Posterior(steps=250), GaussianNoise(0.02))
    assert naive.mean() < 1.5 * told.mean()


def test_bad_settings():
    with pytest.raises(InputError, match="edges"):
        Posterior(edges=0.0)
    with pytest.raises(InputError, match="floor"):
        errors(Posterior(floor=-1.0), GaussianNoise(0.02))
