"""Uniform noise as a baseline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpfl.metrics import ncc, ssim
from medpfl.metrics.noise import noise_images, noise_scores, percentile_of
from tests.metrics.phantoms import phantom


@pytest.mark.parametrize("score", [ssim, ncc], ids=repr)
def test_99_of_100_noise_images_score_lower(score):
    truth = torch.cat([phantom(24, 24, seed=seed) for seed in range(3)])
    found = noise_scores(score, truth)
    noise = torch.rand(100, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    scores = [score(noise, image.expand_as(noise)).numpy() for image in truth]
    assert found.tolist() == pytest.approx([np.percentile(own, 99) for own in scores])
    assert [int((own > limit).sum()) for own, limit in zip(scores, found.tolist(), strict=True)] == [1, 1, 1]
    assert (found < 0.2).all()


def test_noise_correlates_as_little_as_theory_says():
    """Correlation with independent noise has a standard deviation of 1 / sqrt(pixels)."""
    truth = phantom(64, 64)
    assert noise_scores(ncc, truth).item() == pytest.approx(2.33 / 64, rel=0.3)


def test_the_same_for_one_image_as_for_many_and_from_one_call_to_the_next():
    truth = torch.cat([phantom(seed=seed) for seed in range(3)])
    alone = [noise_scores(ssim, image[None]).item() for image in truth]
    assert noise_scores(ssim, truth).tolist() == alone


def test_large_images_are_scored_in_parts(monkeypatch):
    truth = phantom(24, 24)
    whole = noise_scores(ncc, truth)
    monkeypatch.setattr("medpfl.metrics.noise._ELEMENTS", 24 * 24 * 7)
    assert noise_scores(ncc, truth).item() == pytest.approx(whole.item(), abs=0.03)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 5, 16, 16), (1, 12, 12, 12)])
def test_what_ssim_computes_once_for_all_targets_changes_no_digit(shape):
    truth = torch.cat([torch.rand(3, *shape, generator=torch.Generator().manual_seed(1)), torch.full((1, *shape), 0.5)])
    plain = [torch.stack([ssim(noise, image[None]) for image in truth]) for noise in noise_images(shape)]
    assert torch.equal(noise_scores(ssim, truth), percentile_of(torch.cat(plain, 1), 1))
