"""Images that the states of a ReLU tell apart: planted vectors, batches through small networks, and refusals."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from medpfl.attacks import Separation
from medpfl.attacks.deep.capacity import capacity
from medpfl.attacks.deep.switches import Head, most_images, separate_states
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.data import Samples
from medpfl.models import MLP
from tests.attacks.scenes import scene, smooth


def planted(images: int, classes: int, seed: int, outputs: int = 96, inputs: int = 40):
    """Return a gradient (O, C + 1), its head, layer and inputs, and the forward run of the layer.

    The inputs are alike: a common part, and a small one of each image.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shown = 0.5 + drawn(inputs) + 0.3 * drawn(images, inputs)
    weight, bias, head = drawn(outputs, inputs) / inputs**0.5, 0.1 * drawn(outputs), drawn(outputs, classes)
    labels = torch.randint(classes, (images,), generator=generator)
    pull = functional.softmax(0.3 * drawn(images, classes), 1) - functional.one_hot(labels, classes)
    delta = ((shown @ weight.T + bias) > 0) * (pull @ head.T)
    matrix = delta.T @ torch.cat([shown, torch.ones(images, 1).double()], 1)
    span = torch.linalg.svd(pull.T, full_matrices=False)[0][:, : min(images, classes - 1)]
    return matrix, Head(head, span), shown, lambda x: x @ weight.T + bias, weight.norm(dim=1)


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (2, 2), (5, 2), (8, 2), (1, 4), (4, 3), (6, 4), (3, 12)])
def test_planted_images_are_all_found(images, classes):
    matrix, head, shown, run, gain = planted(images, classes, images)
    found = separate_states(matrix, head, run, gain)
    assert found.complete
    assert (found.rank, found.agreed + found.undecided) == (images, 96 * images)
    assert found.undecided <= 2
    order = torch.cdist(found.inputs, shown).argmin(1)
    assert sorted(order.tolist()) == list(range(images))
    assert torch.allclose(found.inputs, shown[order], atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_derivatives_without_states_give_no_images(classes):
    """Dense derivatives have no entry that is zero or known."""
    generator = torch.Generator().manual_seed(classes)
    _, head, _, run, gain = planted(3, classes, 1)
    matrix = torch.randn(96, 3, generator=generator, dtype=torch.float64) @ torch.rand(
        3, 41, generator=generator, dtype=torch.float64
    )
    found = separate_states(matrix, head, run, gain)
    assert (len(found.inputs), found.found, found.rank) == (0, 0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_images_that_do_not_give_their_own_states_are_not_read(seed):
    """The states come from another layer, so that the vectors are right, and nothing confirms the images."""
    matrix, head, _, _, gain = planted(3, 2, seed)
    _, _, _, other, _ = planted(3, 2, seed + 10)
    found = separate_states(matrix, head, other, gain)
    assert (len(found.inputs), found.found) == (0, 3)


@pytest.mark.parametrize("noise", [1e-6, 1e-4, 1e-2, 0.3])
def test_noise_reads_images_or_none(noise):
    matrix, head, shown, run, gain = planted(3, 2, 4)
    drawn = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = separate_states(matrix + noise * matrix.square().mean().sqrt() * drawn, head, run, gain)
    assert found.complete == (noise < 1e-3)
    if found.complete:
        error = found.inputs - shown[torch.cdist(found.inputs, shown).argmin(1)]
        assert error.square().mean().sqrt() < 100 * noise


@pytest.mark.parametrize("matrix", [torch.zeros(40, 9).double(), torch.full((40, 9), torch.nan).double()])
def test_matrices_that_show_nothing(matrix):
    found = separate_states(
        matrix, Head(torch.ones(40, 2).double(), torch.ones(2, 1).double()), lambda x: x, matrix[:, 0]
    )
    assert (found.complete, found.rank) == (False, 0)


def read(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, plan: Plan, classes: int = 3):
    """Return the reconstruction of one batch, and each guess's image."""
    seen = scene(network, images[None], labels[None], plan, classes=classes)
    guess = Separation()(seen, torch.Generator().manual_seed(0))
    return guess, torch.cdist(guess.guesses[0].flatten(1), images.flatten(1)).argmin(1)


@pytest.mark.parametrize("size", [1, 4, 8])
def test_medical_images_through_one_hidden_layer_are_read_exactly(size):
    data = Samples(size=32, channels=1).load()
    images, labels = data.images[:size], data.labels[:size]
    network = MLP().build((1, 32, 32), len(data.classes), 0)
    guess, order = read(network, images, labels, Plan(batch_size=size), len(data.classes))
    assert sorted(order.tolist()) == list(range(size))
    assert torch.allclose(guess.guesses[0], images[order], atol=1e-3)
    assert guess.labels is not None
    assert torch.equal(guess.labels[0], labels[order])
    assert guess.ended == ("converged",)
    assert f"of {256 * size:,} ReLU states follow from the images again" in guess.certificates[0]


FRONTS = {
    "batch norm behind the layer": (nn.Flatten(), nn.Linear(144, 128), nn.BatchNorm1d(128), nn.ReLU()),
    "GELU before the layer": (nn.Flatten(), nn.Linear(144, 160), nn.GELU(), nn.Linear(160, 128), nn.ReLU()),
}


@pytest.mark.parametrize("name", FRONTS)
def test_what_may_stand_around_the_layer(name):
    torch.manual_seed(0)
    network = nn.Sequential(*FRONTS[name], nn.Linear(128, 3)).eval()
    images, labels = smooth(3), torch.tensor([0, 2, 2])
    guess, order = read(network, images, labels, Plan(batch_size=3, mode="eval"))
    assert guess.certificates[0].startswith("3 images separated; ")
    assert guess.labels is not None
    if name != "GELU before the layer":  # no values of a GELU's inputs follow from its outputs
        assert sorted(order.tolist()) == [0, 1, 2]
        assert torch.allclose(guess.guesses[0], images[order], atol=5e-2)
        assert torch.equal(guess.labels[0], labels[order])


def test_a_local_step_with_weight_decay_is_one_gradient():
    images, labels = smooth(4), torch.tensor([0, 1, 2, 0])
    plan = Plan("FedAvg", batch_size=4, weight_decay=0.1, learning_rate=0.2)
    guess, order = read(MLP().build((1, 12, 12), 3, 0), images, labels, plan)
    assert torch.allclose(guess.guesses[0], images[order], atol=1e-2)


def test_the_reach_by_count():
    assert [most_images(outputs, 2, 100) for outputs in (16, 24, 40, 256)] == [0, 2, 10, 17]
    assert most_images(256, 10, 100) == 9
    network = MLP().build((1, 12, 12), 3, 0)
    found = capacity(network, (1, 12, 12), 8)
    assert (found.separates, found.reads, found.stops, found.most) == ("1", "1", "", 16)
    assert capacity(MLP((16,)).build((1, 12, 12), 3, 0), (1, 12, 12), 1).why == (
        "1: its 16 outputs are too few to tell images apart"
    )


def test_several_local_steps_are_refused():
    plan = Plan("FedAvg", batch_size=2, local_images=4)
    with pytest.raises(InputError, match="separate the images of a single step only"):
        Separation().check(MLP().build((1, 12, 12), 3, 0), (plan,), (1, 12, 12))
