"""Large tensors that several processes use are in memory once, and those that open one do not change it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medpfl.core import shared_memory
from medpfl.core.shared_memory import LARGE, empty, opened, shared

SHAPE = (LARGE // 1024, 256)
linux = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has memory without a name")


@linux
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8])
def test_another_process_reads_the_same_numbers(dtype):
    held = empty((4 * SHAPE[0], *SHAPE[1:]), dtype)
    held.copy_(torch.arange(held.numel()).view(held.shape) % 100)
    place = shared(held)
    assert place is not None
    code = f"from medpfl.core.shared_memory import *; import torch; print(int(opened{tuple(place)!r}.sum()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) == int(held.sum())


@linux
def test_changes_remain_in_the_process_that_makes_them():
    held = empty(SHAPE).fill_(1.0)
    place = shared(held)
    assert place is not None
    one, other = opened(*place), opened(*place)
    one.zero_()
    assert (held == 1).all()
    assert (other == 1).all()


@linux
def test_first_rows_are_shared_and_other_parts_are_not():
    held = empty((4, *SHAPE)).fill_(1.0)
    part = shared(held[:3])
    assert part is not None
    assert torch.equal(opened(*part), held[:3])
    for other in (held[1:], held.transpose(1, 2), held[:, :1], held[0, :2], held.clone(), held[0].to_sparse()):
        assert shared(other) is None


@linux
def test_memory_ends_with_its_tensors():
    files = set(Path("/proc/self/fd").iterdir())
    held = empty(SHAPE).fill_(2.0)
    part, place = held[:], shared(held)
    assert place is not None
    del held
    other = opened(*place)
    del part
    gc.collect()
    assert not Path(place.path).exists()
    assert (other == 2).all(), "a process that has opened it keeps it"
    del other
    assert set(Path("/proc/self/fd").iterdir()) <= files


@pytest.mark.parametrize("why", ["small", "system", "refused"])
def test_other_tensors_are_usual_ones(monkeypatch, why):
    if why == "system":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    if why == "refused":
        monkeypatch.setattr(shared_memory, "_made", lambda size: (_ for _ in ()).throw(OSError))
    found = empty((2, 3) if why == "small" else SHAPE, torch.float64)
    assert (found.dtype, found.shape) == (torch.float64, (2, 3) if why == "small" else SHAPE)
    assert shared(found) is None
