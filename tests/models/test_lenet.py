"""The papers' LeNets, layer by layer, against numbers worked out by hand."""

import pytest
import torch
from scipy import stats
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.types import Weights
from medpfl.models import LeNet

# variant: width, kernel, padding, strides, inputs of the linear layer for 32 x 32 (12 * 8 * 8; 16 * 50 * 50)
PAPERS = {
    "dlg": (12, 5, 2, [2, 2, 1, 1], 768),
    "idlg": (12, 5, 2, [2, 2, 1], 768),
    "cpl": (16, 2, 2, [1] * 6, 40000),
}
# (variant, channels, classes): parameters
COUNTS = {
    ("dlg", 1, 10): 312 + 3 * 3612 + 7690,
    ("dlg", 3, 100): 912 + 3 * 3612 + 76900,
    ("idlg", 3, 100): 912 + 2 * 3612 + 76900,
    ("cpl", 3, 10): 208 + 5 * 1040 + 400010,
    ("cpl", 1, 2): 80 + 5 * 1040 + 80002,
}


@pytest.mark.parametrize("variant", PAPERS)
def test_layers(variant):
    width, kernel, padding, strides, features = PAPERS[variant]
    layers = list(LeNet(variant).build((3, 32, 32), 10, seed=0))
    *pairs, flatten, linear = layers
    assert isinstance(flatten, nn.Flatten)
    assert (linear.in_features, linear.out_features) == (features, 10)
    assert len(pairs) == 2 * len(strides)
    for i, (convolution, sigmoid) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
        assert isinstance(sigmoid, nn.Sigmoid)
        assert convolution.weight.shape == (width, 3 if i == 0 else width, kernel, kernel)
        assert (convolution.stride, convolution.padding) == ((strides[i],) * 2, (padding,) * 2)
        assert convolution.bias is not None


@pytest.mark.parametrize(("case", "count"), COUNTS.items(), ids=str)
def test_number_of_parameters(case, count):
    variant, channels, classes = case
    network = LeNet(variant).build((channels, 32, 32), classes, seed=0)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("scale", [0.5, 0.1])
@pytest.mark.parametrize("variant", PAPERS)
def test_weights_and_biases_are_uniform(variant, scale):
    parameters = Weights.of(LeNet(variant, scale=scale).build((3, 32, 32), 10, seed=1)).parameters
    for name, tensor in parameters.items():
        assert tensor.abs().max() <= scale, name
        values = tensor.flatten()[:20_000].numpy()
        assert stats.kstest(values, stats.uniform(-scale, 2 * scale).cdf).pvalue > 1e-4, name
    whole = torch.cat([t.flatten() for t in parameters.values()])
    assert whole.std().item() == pytest.approx(scale / 3**0.5, rel=0.02)


def test_unknown_variant():
    with pytest.raises(InputError, match="no variant 'dgl'; did you mean 'dlg'"):
        LeNet("dgl")
