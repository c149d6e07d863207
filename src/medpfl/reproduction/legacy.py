"""What each artefact of the notebooks' scores does, shown on an embedded image that anybody may see."""

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
    """Pixels as ``torchvision.transforms.ToPILImage`` makes them of floats: cut off to 1/255, and modulo 256."""
    return (images * 255).long().remainder(256) / 255


def uniform_window(guess: Tensor, truth: Tensor) -> Tensor:
    """SSIM with scikit-image's default window, 7 x 7 and uniform, sample covariance, data range 1."""

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
"""Guess and truth (N, C, H, W) to a score each; the first is the one that counts."""


def examples() -> tuple[Tensor, dict[str, Tensor]]:
    """A sample (1, 1, 64, 64), and guesses of it from good to worthless, some beyond [0, 1] as attacks leave them."""
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
    """Writes ``legacy.md`` and ``legacy.png``; both may be shared."""
    truth, guesses = examples()
    tiles = [(_screen(image), name) for name, image in guesses.items()]
    picture = write(out / "legacy.png", draw_grid("An embedded sample, and what stands in for a guess of it", [tiles]))
    scores = {n: [number(float(call(g, truth))) for call in CALLS.values()] for n, g in guesses.items()}
    lines = markdown_table(["guess", *CALLS], [[name, *own] for name, own in scores.items()])
    return [write(out / "legacy.md", "\n".join([_HEAD, *lines, "", _FOOT, ""]).encode()), picture]


def _screen(image: Tensor) -> np.ndarray:
    return (image[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()


_HEAD = """# What the notebooks' scores do

Each column is one way of calling SSIM, each row a guess of the same image: one of the embedded samples, 64 pixels wide.

![the image and the guesses](legacy.png)
"""

_FOOT = """The first column is the SSIM of all our tables: pixels clamped to [0, 1], data range 1, Gaussian window.

- *Data range 0* (CPL, iDLG and most defense cells): the constants that stabilize the quotient are zero, so that regions
  that are almost flat are scored by their rounding errors.
- *Data range 255 on pixels normalized by CIFAR-10's moments* (GradInv): the constants are larger than the image's own
  variances. Whatever is guessed looks like the truth, pure noise too.
- *After 8-bit conversion* (DLG): between 0 and 1 it costs next to nothing, but numbers below 0 or above 1 are
  taken modulo 256, where dark turns to white.
- *Default window* (7 x 7, uniform, sample covariance; data range 1): sound, but another number. Two papers' SSIM can
  be compared only if the window is the same.
- *Oracle iterate* (defense cells) is no call but a choice, the iterate nearest to the truth: see the column of that
  name in the tables.
"""
