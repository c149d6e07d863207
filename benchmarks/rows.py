"""What the tables share: the clock, scores by image, rates with their intervals."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor

from medpfl.metrics import ssim
from medpfl.metrics.pairing import pair
from medpfl.metrics.pixel import SUCCESS
from medpfl.metrics.rates import interval

now = time.process_time if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter
"""Seconds: of the wall, or, with ``BENCH_CLOCK=cpu``, of the processor, for a machine that others use too.

The latter counts every thread: compare with ``OMP_NUM_THREADS=1`` only.
"""


def conditions() -> str:
    """What a table was made under."""
    kind = "processor" if now is time.process_time else "wall"
    return f"seconds of the {kind}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def scores(guesses: Tensor, batches: Tensor) -> Tensor:
    """(V * N,) SSIM of guesses (V, N, C, H, W), each paired with the images of its batch by mean squared error."""
    each = []
    for guess, truth in zip(guesses, batches, strict=True):
        clean = guess.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
        each.append(ssim(clean[pair(clean, truth)], truth))
    return torch.cat(each)


def rate(score: Tensor) -> str:
    """``0.83 [0.52, 0.98]``: the share of images (M,) that are read back, with its 95 % interval."""
    hits = int((score >= SUCCESS).sum())
    low, high = interval(hits, len(score))
    return f"{hits / max(len(score), 1):.2f} [{low:.2f}, {high:.2f}]"


def columns(*names_and_widths: tuple[str, int]) -> str:
    """A table's head; negative widths are of columns that begin at the left."""
    return "".join(f"{name:<{-width}}" if width < 0 else f"{name:>{width}}" for name, width in names_and_widths)
