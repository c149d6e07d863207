"""The textbook loop, on a network whose gradient contains the image unchanged."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmarks.textbook import CALLS, textbook

pytestmark = pytest.mark.extra


def _case():
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Sigmoid(), nn.Linear(3, 3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    image, label = torch.rand(1, 3, 2, 2, generator=generator), torch.tensor([2])
    loss = nn.functional.cross_entropy(network(image), label)
    sent = list(torch.autograd.grad(loss, list(network.parameters())))
    return network, image, label, sent, torch.rand(1, 3, 2, 2, generator=generator)


def test_it_reads_the_image_and_ends_at_the_stopping_rule():
    network, image, label, sent, start = _case()
    outcome = textbook(network, sent, start, label, 3, stop=1e-8)
    assert torch.allclose(outcome.guess, image[0], atol=1e-2)
    assert outcome.loss < 1e-8
    assert 1 < outcome.evaluations < 25 * CALLS


@pytest.mark.slow
def test_a_looser_stopping_rule_ends_earlier():
    network, _, label, sent, start = _case()
    strict, loose = (textbook(network, sent, start, label, 3, stop).evaluations for stop in (1e-12, 1e-1))
    assert loose < strict


def test_labels_can_be_optimized_too():
    network, image, _, sent, start = _case()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)  # of the soft label; from some of them the loop diverges, as it has no line search
        outcome = textbook(network, sent, start, None, 3, stop=1e-8)
    assert torch.allclose(outcome.guess, image[0], atol=1e-2)


def test_an_objective_that_is_not_a_number_ends_the_loop():
    network, _, label, sent, start = _case()
    outcome = textbook(network, sent, start * torch.nan, label, 3, stop=1e-8)
    assert outcome.evaluations <= 25  # one call of its optimizer
    assert math.isnan(outcome.loss)
