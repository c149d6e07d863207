"""``python -m benchmarks memory``: measure the peak memory of audits with 100 and 1,000 images, one process each.

The target: ten times as many images take at most 1.2 times as much memory, because victims are attacked in stacks of
limited size, and only numbers are kept of what is done. The images are drawn smooth pictures in a temporary folder,
which the audit reads like a user's, and only numbers are written. A few steps are enough: memory does not depend on the
images' content, and the history of L-BFGS is full after 100 steps.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medpfl import Run, Victims, audit
from medpfl.data import ImageFolder

MARK = 1.2
_SIDE, _COARSE, _CLASSES = 32, 8, 4
_UNIT = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere


def draw(root: Path, count: int) -> None:
    """Write `count` different color pictures (32 x 32) into class folders."""
    random = np.random.default_rng(0)
    for i in range(count):
        folder = root / f"class {i % _CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (_COARSE, _COARSE, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(folder / f"{i}.png")


def child(folder: str, images: int, steps: int) -> None:
    """Attack all images in a folder, and print this process's peak memory in MiB and its time in seconds."""
    started = time.perf_counter()
    audit(
        "LeNet('idlg')",
        ImageFolder(Path(folder, "data"), _SIDE, limit=images),
        attacks=[f"iDLG(steps={steps})"],
        victims=Victims(images=images),
        run=Run(out=Path(folder, "run"), numbers_only=True),
    )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _UNIT, time.perf_counter() - started)


def peak(images: int, steps: int) -> tuple[float, float]:
    """Return the peak memory in MiB and the time in seconds of `child` in a process of its own."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder, "data"), images)
        command = [sys.executable, "-m", "benchmarks.memory", folder, str(images), str(steps)]
        done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    memory, seconds = done.stdout.split()[-2:]
    return float(memory), float(seconds)


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the peaks and their ratio, or only a note if `go_on` returns False at the start."""
    if not go_on():
        yield "not run: time is up"
        return
    peaks = []
    for images in chosen.images:
        memory, seconds = peak(images, chosen.steps)
        peaks.append(memory)
        each = f"{seconds:.0f} s, {1000 * seconds / images:.0f} ms an image"
        yield f"peak memory of an audit of {images} images, {chosen.steps} steps each: {memory:.0f} MiB ({each})"
    yield f"ratio {max(peaks) / min(peaks):.2f} (the mark is {MARK})"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--full", action="store_true", help="120 steps")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--steps", type=int, help="steps per attack (3)")
    chosen = parser.parse_args(arguments)
    chosen.steps = chosen.steps or (120 if chosen.full else 3)
    return chosen


if __name__ == "__main__":
    child(sys.argv[1], *map(int, sys.argv[2:]))
