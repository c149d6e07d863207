"""Shared parts of the tables: the clock, SSIM per image, and rates with intervals."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor

from medpfl.metrics import ssim
from medpfl.metrics.identification import distances, nearest
from medpfl.metrics.pairing import pair
from medpfl.metrics.pixel import SUCCESS
from medpfl.metrics.rates import interval

now = time.process_time if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter
"""Clock in seconds: wall time, or processor time with ``BENCH_CLOCK=cpu``, for a machine under other load.

Processor time adds up all threads: compare it with ``OMP_NUM_THREADS=1`` only.
"""


def conditions() -> str:
    """Return the conditions under which a table is made."""
    kind = "processor" if now is time.process_time else "wall"
    return f"{kind} seconds, {torch.get_num_threads()} threads, torch {torch.__version__}"


def scores(guesses: Tensor, batches: Tensor) -> Tensor:
    """Return the SSIM (V * N,) of guesses (V, N, C, H, W), paired with their batch's images by mean squared error."""
    each = []
    for guess, truth in zip(guesses, batches, strict=True):
        clean = guess.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
        each.append(ssim(clean[pair(clean, truth)], truth))
    return torch.cat(each)


def identified(guesses: Tensor, batches: Tensor, known: Tensor) -> Tensor:
    """Return which guesses (V * N,) are nearest to their own image among known ones (G, C, H, W).

    They are paired with the images as in `scores`. Copies of an image count as the image.
    """
    each = []
    for guess, truth in zip(guesses, batches, strict=True):
        clean = guess.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
        same = distances(truth, known) == 0
        own = same.float().argmax(1)
        each.append(nearest(clean[pair(clean, truth)], own, [known], lambda a, b, same=same: same[:, a:b]).identified)
    return torch.cat(each)


def rate(score: Tensor) -> str:
    """Return the share of images (M,) that are reconstructed, with its 95 % interval: ``0.83 [0.52, 0.98]``."""
    hits = int((score >= SUCCESS).sum())
    low, high = interval(hits, len(score))
    return f"{hits / max(len(score), 1):.2f} [{low:.2f}, {high:.2f}]"


def columns(*names_and_widths: tuple[str, int]) -> str:
    """Return a table's header. A negative width aligns the column to the left."""
    return "".join(f"{name:<{-width}}" if width < 0 else f"{name:>{width}}" for name, width in names_and_widths)
