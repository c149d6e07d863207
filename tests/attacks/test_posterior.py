import pytest
import torch

from medpfl.attacks import Posterior, iDLG
from medpfl.attacks.matching.likelihood import noise_from_columns
from medpfl.attacks.matching.objectives import SquaredDistance
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.defenses import LaplaceNoise
from tests.attacks.scenes import scene, smooth, tiny

LABELS = torch.tensor([[0], [2], [1]])


def errors(attack, defense, granted=("defense",), plan=None):
    plan = plan or Plan()
    images = smooth(3 * plan.images, 3).view(3, plan.images, 3, 12, 12)
    labels = LABELS.expand(-1, plan.images)
    seen = scene(tiny(3), images, labels, plan, defense=defense, threat=ThreatModel(granted))
    guess = attack(seen, torch.Generator().manual_seed(0))
    return (guess.guesses - images).square().flatten(1).mean(1), guess


@pytest.mark.slow
def test_reads_through_noise_what_a_match_does_not_and_ends_at_the_noise():
    ours, guess = errors(Posterior(steps=150), LaplaceNoise(0.01))
    theirs, _ = errors(iDLG(steps=100), LaplaceNoise(0.01))
    naive, _ = errors(Posterior(steps=150), LaplaceNoise(0.01), granted=())
    assert ours.mean() < 0.8 * theirs.mean()
    assert ((guess.loss > 0.7) & (guess.loss < 1.2)).all(), guess.loss  # 0.8 of the noise, and the prior
    # How large the noise is can be seen in the update; that it is Laplace's is told.
    assert ours.mean() < naive.mean() < 2 * ours.mean()


def test_the_search_begins_nearly_gray():
    guess = Posterior(steps=1)(
        scene(tiny(3), smooth(2, 3).view(1, 2, 3, 12, 12), LABELS[:2].T, Plan(batch_size=2)),
        torch.Generator().manual_seed(0),
    )
    assert (guess.guesses - 0.5).abs().mean() < 0.2


def test_bad_settings():
    with pytest.raises(InputError, match="edges"):
        Posterior(edges=0.0)
    with pytest.raises(InputError, match="floor"):
        errors(Posterior(floor=-1.0), LaplaceNoise(0.01))


@pytest.mark.slow
def test_two_classes_whose_columns_cancel_are_no_exact_zeros():
    images, labels = smooth(6).view(6, 1, 1, 12, 12), torch.tensor([[0], [1]] * 3)
    seen = scene(tiny(classes=2), images, labels, Plan(), classes=2)
    variance = noise_from_columns(seen, seen.views[0])
    assert (variance > 0).all()
    guess = Posterior(steps=20)(seen, torch.Generator().manual_seed(0))
    assert guess.guesses.isfinite().all()


def test_an_exact_coordinate_leaves_weights_finite():
    sent = {"a": torch.randn(4, 3), "b": torch.randn(4)}
    precision = {"a": torch.full((4, 3), torch.inf), "b": torch.tensor([1.0, torch.inf, 0.0, 2.0])}
    weights = SquaredDistance().prepare({"sent": sent, "precision": precision})["weight"]
    assert all(w.isfinite().all() and (w >= 0).all() for w in weights.values())
