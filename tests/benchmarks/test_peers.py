"""breaching gets the same as our attacks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import peers
from benchmarks.peers import PEERS, Peer
from benchmarks.scenes import Scene, play, scene
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.models import ResNet

pytestmark = pytest.mark.extra


@pytest.fixture(scope="module")
def case() -> Scene:
    return scene("samples", "idlg", 2, seed=3)


def _smooth(plan: Plan, network: nn.Module | None = None) -> Scene:
    """Return a smooth picture, by default under a linear layer whose gradient contains it unchanged."""
    ramp = torch.linspace(0, 1, 16)
    picture = torch.stack([ramp.expand(16, 16), ramp.expand(16, 16).T, ramp.expand(16, 16).flip(1)])
    if network is None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.uniform_(-0.05, 0.05, generator=torch.Generator().manual_seed(0))
    return play(network, picture[None, None], torch.tensor([[1]]), 2, plan=plan)


AVERAGING = Plan(algorithm="FedAvg", learning_rate=0.05)


def _at_the_truth(case: Scene, config: str) -> float:
    """Return breaching's own objective at the target image, relative to its value at a black one."""
    with peers.quiet(0):
        import breaching

        attacker = breaching.attacks.prepare_attack(
            case.network, peers._CountedLoss(), breaching.get_attack_config(config, ["attack_type=optimization"])
        )
        shared = peers._shared(case, 0, labelled=True)
        models, labels, _ = attacker.prepare_attack([peers._payload(case)], [shared])
        attacker.objective.initialize(attacker.loss_fn, attacker.cfg.impl, shared["metadata"]["local_hyperparams"])
        inside = [(image - attacker.dm) / attacker.ds for image in (case.batches[0], torch.zeros_like(case.batches[0]))]
        truth, black = (attacker.objective(models[0], shared["gradients"], x, labels)[0] for x in inside)
    return float(truth.detach() / black.detach())


@pytest.mark.parametrize("config", ["invertinggradients", "deepleakage"])
@pytest.mark.parametrize("plan", [Plan(mode="eval"), replace(AVERAGING, mode="eval")], ids=["gradient", "difference"])
@pytest.mark.parametrize("network", [None, ResNet(18).build((3, 16, 16), 2, 0).eval()], ids=["linear", "resnet"])
def test_the_private_image_is_its_optimum(config, plan, network):
    assert abs(_at_the_truth(_smooth(plan, network), config)) < 1e-4


@pytest.mark.parametrize("plan", [Plan(), AVERAGING], ids=["gradient", "difference"])
def test_invertinggradients_reads_the_picture(plan):
    case = _smooth(plan)
    guess = PEERS["invertinggradients"].attack(case, 0, 300).guess
    # The cosine leaves a linear layer's picture open up to its contrast.
    assert torch.corrcoef(torch.stack([guess.flatten(), case.batches.flatten()]))[0, 1] > 0.98


def test_deepleakage_lowers_its_objective():
    case = scene("samples", "idlg", 1, seed=3)
    early, late = (PEERS["deepleakage"].attack(case, 0, iterations).loss for iterations in (1, 6))
    assert late < 0.5 * early


def test_a_network_that_normalizes_is_matched_in_its_own_space():
    case = _smooth(Plan(mode="eval"), ResNet(18).build((3, 16, 16), 2, 0).eval())
    peer = Peer("invertinggradients", ("init=zeros", "optim.step_size=0.0"))
    outcome = peer.attack(case, 0, 1)  # 0 in the normalized space is the mean color in ours
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    assert torch.allclose(outcome.guess[0], mean.expand(3, 16, 16), atol=1e-6)


def test_iterations_and_evaluations_are_those_asked_for(case):
    outcome = PEERS["invertinggradients"].attack(case, 0, 7)
    assert (outcome.iterations, outcome.evaluations) == (7, 8)  # the last one scores the guess
    outcome = PEERS["deepleakage+labels"].within(case, 1, seconds=0.0, pace=1.0, least=30)
    assert outcome.iterations == 2
    assert outcome.guess.shape == (1, 3, 32, 32)
    assert PEERS["invertinggradients"].within(case, 1, seconds=1.0, pace=0.1, least=2).iterations == 10


def test_it_neither_prints_nor_touches_the_global_generator(case, capsys):
    before = torch.random.get_rng_state()
    first, second = (PEERS["invertinggradients"].attack(case, 0, 3, seed=5).guess for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
    assert capsys.readouterr().out == ""


def test_several_local_steps_are_refused():
    plan = Plan(algorithm="FedAvg", batch_size=1, local_images=2)
    images = torch.rand(1, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    case = play(network, images, torch.tensor([[0, 1]]), 2, plan=plan)
    with pytest.raises(InputError, match="2 local steps"):
        PEERS["invertinggradients"].attack(case, 0, 1)
