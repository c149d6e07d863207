"""LeakPro gets the same as our attacks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import contested, leakpro
from benchmarks.leakpro import LeakPro
from benchmarks.scenes import play
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan

pytestmark = pytest.mark.extra
needs_clone = pytest.mark.skipif(leakpro.missing() is not None, reason=str(leakpro.missing()))


def test_without_a_clone_its_rows_are_named_with_the_variable(monkeypatch, tmp_path):
    words = ["--sets", "samples", "--ours", "GradInv", "--steps", "1", "--images", "2"]
    words += ["--cells", "batch 2", "--theirs", "leakpro: huang"]
    for value, said in (("", "LEAKPRO does not name a clone"), (str(tmp_path), "is not a clone")):
        monkeypatch.setenv("LEAKPRO", value)
        first, *_ = contested.lines(contested.parsed(words))
        assert "leakpro: huang" in first
        assert said in first


@needs_clone
@pytest.mark.parametrize("plan", [Plan(), Plan(algorithm="FedAvg", learning_rate=0.05)], ids=["gradient", "difference"])
def test_it_reads_a_picture_under_a_linear_layer(plan):
    ramp = torch.linspace(0, 1, 16)
    picture = torch.stack([ramp.expand(16, 16), ramp.expand(16, 16).T, ramp.expand(16, 16).flip(1)])
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    case = play(network, picture[None, None], torch.tensor([[1]]), 2, plan=plan)
    guess = LeakPro("inverting_gradients_attack").attack(case, 0, 300).guess
    assert torch.corrcoef(torch.stack([guess.flatten(), picture.flatten()]))[0, 1] > 0.95


@needs_clone
def test_several_local_steps_are_refused():
    plan = Plan(algorithm="FedAvg", local_images=2)
    case = play(
        nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.rand(1, 2, 3, 4, 4), torch.tensor([[0, 1]]), 2, plan=plan
    )
    with pytest.raises(InputError, match="2 local steps"):
        LeakPro("huang_attack").attack(case, 0, 2)
