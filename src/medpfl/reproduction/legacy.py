"""The effect of each artifact in the notebooks' scores, shown on an embedded public image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from medpfl.core.atomic_files import write
from medpfl.core.experiments.groups import Reading
from medpfl.inputs.parts import data_of
from medpfl.metrics.legacy import legacy_ssim_range0, legacy_ssim_range255
from medpfl.metrics.pixel import ssim
from medpfl.reporting.figures.grid import draw_grid
from medpfl.reporting.words import number
from medpfl.reproduction.experiments import SAMPLES
from medpfl.reproduction.markdown import markdown_table
from medpfl.runs.environment import generator_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CALLS", "eight_bit", "examples", "uniform_window", "write_legacy"]


def eight_bit(images: Tensor) -> Tensor:
    """Convert pixels as ``torchvision.transforms.ToPILImage`` does with floats: truncate to 1/255, modulo 256."""
    return (images * 255).long().remainder(256) / 255


def uniform_window(guess: Tensor, truth: Tensor) -> Tensor:
    """Return SSIM with scikit-image's default window (7 x 7, uniform), sample covariance and data range 1."""

    def mean(images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 7, stride=1)

    x, y = guess.double(), truth.double()
    mx, my, correction = mean(x), mean(y), 49 / 48
    vx, vy, vxy = (correction * (mean(a * b) - mean(a) * mean(b)) for a, b in ((x, x), (y, y), (x, y)))
    c1, c2 = 0.01**2, 0.03**2
    scores = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx.square() + my.square() + c1) * (vx + vy + c2))
    return scores.flatten(1).mean(1)


def _correct(guess: Tensor, truth: Tensor) -> Tensor:
    return ssim(guess.clamp(0, 1), truth)


def _default_window(guess: Tensor, truth: Tensor) -> Tensor:
    return uniform_window(guess.clamp(0, 1), truth)


def _as_eight_bit(guess: Tensor, truth: Tensor) -> Tensor:
    return ssim(eight_bit(guess), eight_bit(truth))


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SSIM": _correct,
    "data range 0": legacy_ssim_range0,
    "data range 255, normalized pixels": legacy_ssim_range255,
    "after 8-bit conversion": _as_eight_bit,
    "default window": _default_window,
}
"""Scores by name: functions of guess and target image (N, C, H, W). The first is the correct one."""


def examples() -> tuple[Tensor, dict[str, Tensor]]:
    """Return a sample (1, 1, 64, 64) and guesses from good to worthless, some beyond [0, 1] as attacks produce them."""
    images = data_of(SAMPLES, Reading(size=64, channels=1)).images.images
    truth, other = images[:1], images[-1:]
    noise = torch.rand(truth.shape, generator=generator_of(0, "legacy"))
    return truth, {
        "the image itself": truth,
        "a little blurred": functional.avg_pool2d(truth, 3, stride=1, padding=1, count_include_pad=False),
        "0.1 too dark": truth - 0.1,
        "another image": other,
        "flat gray, its mean": torch.full_like(truth, float(truth.mean())),
        "pure noise": noise,
    }


def write_legacy(out: Path) -> list[Path]:
    """Write ``legacy.md`` and ``legacy.png``; both may be shared."""
    truth, guesses = examples()
    tiles = [(_screen(image), name) for name, image in guesses.items()]
    picture = write(out / "legacy.png", draw_grid("An embedded sample and stand-ins for guesses of it", [tiles]))
    scores = {n: [number(float(call(g, truth))) for call in CALLS.values()] for n, g in guesses.items()}
    lines = markdown_table(["guess", *CALLS], [[name, *own] for name, own in scores.items()])
    return [write(out / "legacy.md", "\n".join([_HEAD, *lines, "", _FOOT, ""]).encode()), picture]


def _screen(image: Tensor) -> np.ndarray:
    return (image[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()


_HEAD = """# The notebooks' scores

Each column is one way to call SSIM. Each row is a guess of the same image, an embedded sample 64 pixels wide.

![the image and the guesses](legacy.png)
"""

_FOOT = """The first column is the SSIM in all our tables: pixels clamped to [0, 1], data range 1, Gaussian window.

- *Data range 0* (CPL, iDLG and most defense cells): the constants that stabilize the quotient are zero, so almost flat
  regions are scored by their rounding errors.
- *Data range 255 on pixels normalized by CIFAR-10's moments* (GradInv): the constants are larger than the image's
  variances, so every guess scores high, even pure noise.
- *After 8-bit conversion* (DLG): it changes almost nothing between 0 and 1, but values below 0 or above 1 wrap around
  (modulo 256), so dark turns to white.
- *Default window* (7 x 7, uniform, sample covariance; data range 1): sound, but it gives other values. SSIM can be
  compared between papers only if the window is the same.
- *Oracle iterate* (defense cells) is not a call but a choice: the iterate nearest to the target image. The tables have
  a column for it.
"""
