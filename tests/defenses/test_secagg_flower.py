"""The model of SecAgg+ against Flower's own arithmetic, where Flower is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpfl.core.types import Update
from medpfl.defenses import SecAggPlus


def test_integers_and_mean_are_those_of_flowers_functions(monkeypatch):
    """Flower's client and server steps, in the order of its mod and workflow, on the same random numbers."""
    why = "needs Flower"
    quantization = pytest.importorskip("flwr.common.secure_aggregation.quantization", reason=why)
    arithmetic = pytest.importorskip("flwr.common.secure_aggregation.ndarrays_arithmetic", reason=why)
    draw = torch.Generator().manual_seed(0)
    samples = (10, 25, 40)
    sent = [Update({"w": torch.randn(30, generator=draw).double()}, num_samples=n) for n in samples]
    defense = SecAggPlus(max_weight=100.0)
    ours = defense.exchange(sent, torch.Generator().manual_seed(1))
    rounding = torch.Generator().manual_seed(1)
    monkeypatch.setattr(
        np.random, "rand", lambda *shape: torch.rand(shape, generator=rounding, dtype=torch.float64).numpy()
    )
    mine, total = torch.Generator().manual_seed(1), None
    for update, count in zip(sent, samples, strict=True):
        weight = round(count / 100.0 * 2**22)
        scaled = arithmetic.parameters_multiply([update.tensors["w"].numpy()], weight / 2**22)
        integers = arithmetic.factor_combine(weight, quantization.quantize(scaled, 8.0, 2**22))
        both = np.concatenate([np.ravel(part) for part in integers])
        assert both.tolist() == defense.quantized(update, mine).tolist()
        integers = [np.asarray(part, np.int64) for part in integers]  # as the masks make them
        total = integers if total is None else arithmetic.parameters_addition(total, integers)
    weight, summed = arithmetic.factor_extract(arithmetic.parameters_mod(total, 2**32))
    (mean,) = quantization.dequantize(summed, 8.0, 2**22)
    mean = (mean - (len(sent) - 1) * 8.0) / (weight / 2**22)
    assert np.allclose(ours.mean.tensors["w"].numpy(), mean, atol=1e-12)
