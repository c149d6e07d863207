"""Searches for images that are known to be gray."""

from dataclasses import replace

import pytest
import torch

from medpfl.attacks import CPL, DLG, GradInv, Posterior, iDLG
from medpfl.attacks.matching.label_targets import label_vectors
from medpfl.attacks.matching.objectives import SquaredDistance
from medpfl.attacks.matching.problem import Matching
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.metrics import ssim
from medpfl.metrics.pairing import pair
from tests.attacks.scenes import scene, smooth, tiny

GRAY = ThreatModel(("gray",))


def seen_of(threat, count=2):
    images = smooth(count).expand(-1, 3, -1, -1)[None]
    return scene(tiny(3), images, torch.arange(count)[None] % 3, Plan(batch_size=count), threat=threat), images


def test_a_gray_image_has_a_third_of_the_variables():
    known, _ = seen_of(GRAY)
    unknown, _ = seen_of(ThreatModel())
    assert (known.gray, unknown.gray) == (True, False)
    labels = label_vectors(known, torch.tensor([[0, 1]]), torch.zeros(1, 3, 12, 12))
    problem, other = (Matching(seen, labels, SquaredDistance()) for seen in (known, unknown))
    assert 3 * problem.pixels == other.pixels
    z = problem.join(torch.rand(1, 2, 3, 12, 12), None)
    images, _ = problem.split(z)
    assert images.shape == (1, 2, 3, 12, 12)
    assert torch.equal(images[:, :, 0], images[:, :, 2])
    assert torch.allclose(problem.join(images, None), z, atol=1e-6)


@pytest.mark.parametrize("attack", [DLG(20), iDLG(20), CPL(20), GradInv(20), Posterior(20)], ids=repr)
def test_guesses_are_gray(attack):
    seen, _ = seen_of(GRAY)
    guesses = attack(seen, torch.Generator().manual_seed(0)).guesses
    assert guesses.shape == (1, 2, 3, 12, 12)
    assert torch.allclose(guesses, guesses[:, :, :1].expand_as(guesses), atol=1e-6)


def test_a_batch_is_read_better_in_one_channel():
    seen, images = seen_of(GRAY.granting("labels"), 3)
    scores = []
    for known in (True, False):
        guesses = iDLG(60)(replace(seen, gray=known), torch.Generator().manual_seed(0)).guesses[0]
        scores.append(float(ssim(guesses[pair(guesses, images[0])], images[0]).mean()))
    assert scores[0] > scores[1] + 0.2
