"""Scenes: the split by rows, batches, updates, and scores of the guesses."""

from __future__ import annotations

import csv

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.rows import rate, scores
from benchmarks.scenes import NAMES, dealt, held_out, play, scene
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.data.folder import ImageFolder
from medpfl.defenses import LaplaceNoise

pytestmark = pytest.mark.extra


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_reported_images_are_of_odd_rows_and_tuned_ones_of_even(real_sets, name):
    with (real_sets / name / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    reported, tuned = (held_out(name, 10_000, 16, tune)[0] for tune in (False, True))
    whole = ImageFolder(real_sets / name, size=16, channels=3).load()
    odd = {row["file"] for row in rows[1::2]}
    assert torch.equal(reported, whole.images[[file in odd for file in whole.names]])
    assert len(reported) == len(rows[1::2])
    assert len(tuned) == len(rows[::2])
    assert len(torch.cat([reported, tuned]).flatten(1).unique(dim=0)) == len(rows)


@pytest.mark.parametrize("count", [4, 6])
def test_images_are_even_over_classes(real_sets, count):
    _, labels, classes = held_out("brain_mri", count, 16)
    counts = labels.bincount(minlength=classes)
    assert len(labels) == count
    assert counts.max() - counts.min() <= 1


@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 99))
def test_dealing_makes_whole_batches_of_different_images_with_their_labels(count, batch, seed):
    images = torch.arange(count).float().view(count, 1, 1, 1)
    dealt_images, labels = dealt(images, torch.arange(count) * 10, batch, seed)
    assert dealt_images.shape == (count // batch, batch, 1, 1, 1)
    assert (dealt_images.flatten() * 10 == labels.flatten()).all()
    assert len(labels.unique()) == labels.numel()


def _linear(scale: float = 1.0) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-scale, scale, generator=torch.Generator().manual_seed(0))
    return network


def _images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_updates_are_plain_gradients():
    network, x, y = _linear(), _images(4).unflatten(0, (2, 2)), torch.tensor([[0, 1], [1, 1]])
    case = play(network, x, y, 2, plan=Plan(batch_size=2))
    loss = nn.functional.cross_entropy(network(x[1]), y[1])
    for sent, plain in zip(
        case.seen.views[0].update.tensors.values(), torch.autograd.grad(loss, list(network.parameters())), strict=True
    ):
        assert torch.allclose(sent[1], plain, atol=1e-6)


def test_zero_updates_are_left_out_and_counted():
    network, x = _linear(1000.0), _images(6)[:, None]
    sure = network(x[:, 0]).argmax(1)
    labels = torch.where(torch.arange(6) < 2, 1 - sure, sure)[:, None]  # wrong labels keep a gradient
    case = play(network, x, labels, 2)
    assert case.zero == 4
    assert torch.equal(case.truths, x[:2, 0])
    with pytest.raises(InputError, match="all 4 updates are zero"):
        play(network, x[2:], labels[2:], 2)


def test_every_victim_has_noise_of_its_own():
    network, x = _linear(), _images(1).expand(2, 1, 3, 16, 16)
    sent = play(network, x, torch.zeros(2, 1, dtype=torch.long), 2, defense=LaplaceNoise(0.1)).seen.views[0].update
    assert not torch.equal(sent.tensors["1.weight"][0], sent.tensors["1.weight"][1])


def test_samples_stand_in_where_sets_are_missing():
    case = scene("samples", "idlg", 3, seed=0)
    assert case.truths.shape == (3, 3, 32, 32)
    assert len(case.seen) == 3


def test_scores_do_not_depend_on_the_order_within_a_batch():
    truth = _images(6).unflatten(0, (2, 3))
    guess = truth[:, [2, 0, 1]].clone()
    assert scores(guess, truth).allclose(torch.ones(6, dtype=torch.float64))
    guess[0, 0] = torch.nan
    assert (scores(guess, truth) < 0.9).tolist() == [False, False, True, False, False, False]


def test_rates_count_images_from_the_mark_on():
    assert rate(torch.tensor([0.95, 0.91, 0.89, 0.2])).startswith("0.50 [0.07, 0.93]")
