"""Unstable local steps: how much a small change grows, and that an audit says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medpfl.core.plan import Plan
from medpfl.inspection.stability import UNSTABLE, growth_of_changes
from medpfl.models import LeNet

SHAPE = (1, 16, 16)


def plan(rate, **settings):
    return Plan("FedAvg", **{"batch_size": 1, "local_images": 5, "mode": "eval", "learning_rate": rate, **settings})


def growth(rate, network=None, **settings):
    network = network or LeNet("idlg").build(SHAPE, 3, 0)
    return growth_of_changes(network, SHAPE, 3, plan(rate, **settings))


def test_wide_weights_need_a_small_learning_rate():
    assert growth(1.0) > UNSTABLE > growth(0.01)
    assert growth(1e-6) == pytest.approx(1.0, abs=1e-3)


def test_a_linear_step_multiplies_a_change_by_what_its_curvature_says():
    class Square(nn.Module):
        """Two logits, w and -w, whatever the image: only the loss bends."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.stack([self.weight + 1e-3 * x.mean((1, 2, 3)), -self.weight], 1)[..., 0:2].flatten(1)

    # The logits' difference is 2 w, so the loss bends by 4 p (1 - p), which is 1 at p = 1/2.
    found = growth_of_changes(Square(), SHAPE, 2, plan(1e-2, local_images=2))
    assert found == pytest.approx((1 - 1e-2) ** 2, abs=1e-4)


@pytest.mark.parametrize(
    "settings", [{"local_images": 1}, {"sampling": "poisson"}, {"algorithm": "FedSGD", "local_images": None}]
)
def test_it_is_not_known_without_several_steps_in_turn(settings):
    network, rest = LeNet("idlg").build(SHAPE, 3, 0), {"batch_size": 1, "local_images": 5, "learning_rate": 1.0}
    given = {**rest, **settings}
    made = Plan(given.pop("algorithm", "FedAvg"), **given)
    assert growth_of_changes(network, SHAPE, 3, made) is None


def test_long_plans_are_tried_in_part():
    many = {"local_images": 60, "epochs": 50}
    assert growth(1e-6, **many) == pytest.approx(1.0, abs=1e-3)
    assert growth(1e-6, batch_size=3, local_images=None, epochs=40) == pytest.approx(1.0, abs=1e-3)
