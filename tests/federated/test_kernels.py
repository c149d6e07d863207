"""Recurrent layers can be differentiated twice, and all other layers keep their fast kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from medpfl import Batch, Plan, Weights
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare


class Rows(nn.Module):
    """A network that reads an image row by row."""

    def __init__(self, kind):
        super().__init__()
        self.rows = kind(6, 5, num_layers=2, batch_first=True)
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.rows(x[:, 0])[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_update_of_a_recurrent_network_has_a_derivative(kind, mode):
    torch.manual_seed(0)
    network, plan = Rows(kind), Plan(batch_size=2, mode=mode)
    ready, weights, labels = prepare(network, plan), Weights.of(network), torch.tensor([0, 1])

    def size(x):
        update = local_update(ready, Batch(x, labels), plan, weights).tensors
        return torch.stack([t.square().sum() for t in update.values()]).sum()

    x = torch.rand(2, 1, 4, 6)
    slope = grad(size)(x)
    assert slope.abs().sum() > 0
    step = torch.randn(x.shape)
    shown = (size(x + 1e-2 * step) - size(x - 1e-2 * step)) / 2e-2
    assert torch.isclose((slope * step).sum(), shown, rtol=0.02)
    together = vmap(grad(size), randomness="different")(torch.stack([x, x]))
    assert torch.allclose(together[1], slope, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("options", [{"bidirectional": True}, {"proj_size": 3}, {"batch_first": False}], ids=str)
def test_outputs_stay_what_they_are(options):
    torch.manual_seed(0)
    layer, x = nn.LSTM(6, 5, num_layers=2, **options), torch.rand(4, 3, 6)
    plain = prepare(layer, Plan())
    for given in ((x,), (x[:, 0],), (x, plain(x)[1])):
        assert torch.allclose(plain(*given)[0], layer(*given)[0], atol=1e-6)


def test_the_switches_are_back_after_a_layer_and_after_an_error():
    ready = prepare(prepare(Rows(nn.LSTM), Plan()), Plan())  # twice: one switch is enough
    assert len(ready.rows._forward_hooks) == 1
    during = []
    ready.rows.register_forward_pre_hook(lambda *_: during.append(torch._C._get_mkldnn_enabled()))
    ready.last.register_forward_pre_hook(lambda *_: during.append(torch._C._get_mkldnn_enabled()))
    before = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    ready(torch.rand(1, 1, 4, 6))
    assert during == [False, before[0]], "the next layer has its fast kernels"
    with pytest.raises(RuntimeError):
        ready(torch.rand(1, 1, 4, 7))
    assert (torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()) == before
