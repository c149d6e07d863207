"""Tensors that can be weights, and prefixes in their names."""

from __future__ import annotations

import pytest
import torch

from medpfl.core.tensors import oddity, shared_prefix


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.zeros(2, device="meta"), "meta device"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.zeros(2, dtype=torch.complex64), "complex"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "float8"),
    ],
    ids=["meta", "sparse", "complex", "float8"],
)
def test_odd_tensors(tensor, why):
    assert why in oddity(tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.long, torch.bool])
def test_plain_tensors(dtype):
    assert oddity(torch.zeros(2, dtype=dtype)) == ""


@pytest.mark.parametrize(
    ("names", "own", "prefix"),
    [
        (["module.fc.w", "module.fc.b"], ["fc.w", "fc.b"], "module."),
        (["_module.net.fc.w"], ["fc.w", "fc.b"], "_module.net."),
        (["module.fc.w"], ["conv.w", "fc.w"], "module."),
        (["model.fc.w", "loss.w"], ["fc.w"], ""),
        (["module.fc.w"], ["module.fc.w"], ""),
        (["a.module.fc.w", "a.module.b"], ["module.fc.w", "module.b"], "a."),
        (["w"], ["fc.w"], ""),
        ([], ["fc.w"], ""),
    ],
)
def test_prefixes(names, own, prefix):
    assert shared_prefix(names, own) == prefix
