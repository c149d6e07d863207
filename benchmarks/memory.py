"""``python -m benchmarks memory``: measure the peak memory of audits with 100 and 1,000 images, one process each.

The target: ten times as many images take at most 1.2 times as much memory, because victims are attacked in stacks of
limited size. The images are the reported ones and their mirrored and dimmed copies. A few steps are enough: memory does
not depend on the images' content, and the history of L-BFGS is full after 100 steps.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.scenes import available, held_out
from medpfl import Victims, audit
from medpfl.data.images import LabelledImages

MARK = 1.2
_UNIT = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere


def many(count: int) -> LabelledImages:
    """Return `count` different images (3, 32, 32)."""
    images, labels, classes = held_out(available()[0], min(count, 100), 32)
    times = -(-count // len(images))
    copies = [(images.flip(-1) if i % 2 else images) * 0.9 ** (i // 2) for i in range(times)]
    return LabelledImages(
        images=torch.cat(copies)[:count],
        labels=labels.repeat(times)[:count],
        classes=tuple(f"class {k}" for k in range(classes)),
        names=tuple(f"image {i}" for i in range(count)),
        patients=(None,) * count,
    )


def child(images: int, steps: int) -> None:
    """Attack `images` images, and print this process's peak memory in MiB."""
    audit("LeNet('idlg')", many(images), attacks=[f"iDLG(steps={steps})"], victims=Victims(images=images))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _UNIT)


def peak(images: int, steps: int) -> float:
    """Return the peak memory of `child` in a process of its own, in MiB."""
    command = [sys.executable, "-m", "benchmarks.memory", str(images), str(steps)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the peaks and their ratio, or only a note if `go_on` returns False at the start."""
    if not go_on():
        yield "not run: time is up"
        return
    peaks = []
    for images in chosen.images:
        peaks.append(peak(images, chosen.steps))
        yield f"peak memory of an audit of {images} images, {chosen.steps} steps each: {peaks[-1]:.0f} MiB"
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
    child(*map(int, sys.argv[1:]))
