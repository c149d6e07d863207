"""The best match of a guess, or of noise, among all images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpfl.metrics import ncc, ssim
from medpfl.metrics.best_match import all_scores, noise_match, ranks
from tests.metrics.phantoms import phantom


def phantoms(count: int, side: int = 24) -> torch.Tensor:
    return torch.cat([phantom(side, side, seed=seed) for seed in range(count)])


@pytest.mark.parametrize("score", [ssim, ncc], ids=repr)
@pytest.mark.parametrize("elements", [24 * 24 * 2, 2**18])
def test_every_guess_is_scored_with_every_image(score, elements, monkeypatch):
    monkeypatch.setattr("medpfl.metrics.best_match._ELEMENTS", elements)
    images = phantoms(5)
    guesses = images[[3, 0]] + torch.tensor([2.0, -0.05]).view(2, 1, 1, 1)  # the first is all white when clamped
    found = all_scores(score, guesses, images.split(3))
    expected = [[float(score(guess[None], image[None])) for image in images] for guess in guesses]
    assert found.numpy() == pytest.approx(np.array(expected), abs=1e-12)
    assert found[1].argmax() == 0


def test_the_rank_counts_better_images_and_no_copies():
    scores = torch.tensor([[0.5, 0.9, 0.5 + 1e-12, 0.1], [0.5, 0.9, 0.5, 0.1], [0.2, 0.3, 0.4, 0.1]])
    assert ranks(scores, torch.tensor([0, 1, 3])).tolist() == [2, 1, 4]


def test_noise_matches_the_better_the_more_images_there_are():
    images = phantoms(12)
    noise = torch.rand(100, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    best = np.array([[float(ncc(one[None], image[None])) for image in images] for one in noise]).max(1)
    assert noise_match(ncc, lambda: [images], images.shape[1:]) == pytest.approx(np.percentile(best, 99))
    few = noise_match(ncc, lambda: [images[:1]], images.shape[1:])
    assert few < noise_match(ncc, lambda: images.split(7), images.shape[1:]) < 0.3
