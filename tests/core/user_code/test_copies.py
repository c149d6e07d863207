"""Copies of networks, and the remedy for networks that cannot be copied."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.func import grad

from medpfl import InputError
from medpfl.core.user_code.copies import copied


class Keeps(nn.Module):
    """A network that keeps its features, as models do for a heat map."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.seen: dict[str, list] = {"features": []}

    def forward(self, x):
        self.features = self.fc(x)
        self.seen["features"] = [self.features]
        return self.features


def test_a_copy_shares_nothing():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    other = copied(network)
    shared = {t.data_ptr() for t in network.state_dict().values()} & {t.data_ptr() for t in other.state_dict().values()}
    assert not shared - {0}


def test_what_a_pass_left_is_forgotten():
    network = Keeps()
    network(torch.ones(1, 3))
    with pytest.raises(InputError, match=r"because of its '(features|seen)'"):
        copied(network)
    assert copied(network, forget=True).seen == {"features": [None]}
    grad(lambda x: network(x).sum())(torch.ones(1, 3))  # which leaves a tensor that lives in torch.func alone
    other = copied(network, forget=True)
    assert other.features is None
    assert torch.equal(other(torch.ones(1, 3)), network(torch.ones(1, 3)))


@pytest.mark.filterwarnings("ignore:`?torch")  # both are deprecated, and still common
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_norms_of_weights_that_are_hooks(norm):
    network = nn.Sequential(nn.Linear(3, 2))
    getattr(nn.utils, norm)(network[0])
    with pytest.raises(
        InputError, match=rf"layer '0' has torch\.nn\.utils\.{norm}.*parametrizations\.{norm}.*remove_{norm}"
    ):
        copied(network)
    copied(nn.Sequential(getattr(nn.utils.parametrizations, norm)(nn.Linear(3, 2))))


@pytest.mark.filterwarnings("ignore:`?torch.jit")
def test_torch_script():
    scripted = torch.jit.script(nn.Linear(3, 2))
    with pytest.raises(InputError, match=r"the model is TorchScript.*give the Python class.*--weights"):
        copied(scripted)
    with pytest.raises(InputError, match=r"layer '1' is TorchScript"):
        copied(nn.Sequential(nn.ReLU(), scripted))


def test_the_layer_that_cannot_be_copied_is_named():
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    network[1].lock = threading.Lock()
    with pytest.raises(InputError, match=r"because of 'lock' of layer '1' \(ReLU\): .*lock.*must not keep tensors"):
        copied(network)


def test_a_copy_that_ends_the_program():
    class Ends(nn.Linear):
        def __deepcopy__(self, memo):
            raise SystemExit(0)

    with pytest.raises(InputError, match=r"cannot be copied.*it ended the program"):
        copied(Ends(3, 2))
