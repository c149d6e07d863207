"""``python -m benchmarks memory``: measure the peak memory of audits with 100 and 1,000 images, one process each.

The target: ten times as many images take at most 1.2 times as much memory, because victims are attacked in stacks of
limited size, and only numbers are kept of what is done. With workers, the peak of each process counts the images that
processes share, and the peak of all processes together counts them once. The images are drawn smooth pictures in a
temporary folder, which the audit reads like a user's, and only numbers are written. A few steps are enough: memory does
not depend on the images' content, and the history of L-BFGS is full after 100 steps.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import numpy as np
from PIL import Image

from medpfl import Run, Victims, audit
from medpfl.data import ImageFolder

MARK = 1.2
_SIDE, _COARSE, _CLASSES = 32, 8, 4
_LOOK = 0.2
"""Seconds between two looks at the workers."""
_UNIT = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere


def children(*parents: int) -> list[int]:
    """Return the processes whose parent is one of some others."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) in parents:
                found.append(int(stat.parent.name))
    return found


def draw(root: Path, count: int) -> None:
    """Write `count` different color pictures (32 x 32) into class folders."""
    random = np.random.default_rng(0)
    for i in range(count):
        folder = root / f"class {i % _CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (_COARSE, _COARSE, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(folder / f"{i}.png")


class Peak:
    """Peak memory in MiB while the context lasts: the largest worker's, 0 without workers, and that of all together.

    All together count what they share once; without Linux, that is unknown, 0.
    """

    def __enter__(self) -> Peak:
        self.mib, self.together, self._ended = 0.0, 0.0, Event()
        self._watch = Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK):
            below = children(os.getpid())
            workers = children(*below)  # the child forks the workers
            self.mib = max([self.mib, *(_told(pid, "status", "VmHWM:") for pid in workers)])
            every = (os.getpid(), *below, *workers)
            self.together = max(self.together, sum(_told(pid, "smaps_rollup", "Pss:") for pid in every))


def _told(pid: int, file: str, name: str) -> float:
    """Return a size in MiB that Linux tells of a process; 0 if it has ended."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/{file}").read_text().partition(name)[2].split()[0]) / 2**10
    return 0.0


def child(folder: str, images: int, steps: int, workers: int) -> None:
    """Attack all images in a folder, and print the peaks of this process, a worker and all in MiB, and seconds."""
    started = time.perf_counter()
    with Peak() as peak:
        audit(
            "LeNet('idlg')",
            ImageFolder(Path(folder, "data"), _SIDE, limit=images),
            attacks=[f"iDLG(steps={steps})"],
            victims=Victims(images=images),
            run=Run(out=Path(folder, "run"), numbers_only=True, workers=workers),
        )
    seconds = time.perf_counter() - started
    # ru_maxrss may be that of the process which started this one.
    own = _told(os.getpid(), "status", "VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _UNIT
    print(own, peak.mib, peak.together, seconds)


def peaks(images: int, steps: int, workers: int = 1) -> tuple[float, ...]:
    """Return what `child` prints, from a process of its own."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder, "data"), images)
        command = [sys.executable, "-m", "benchmarks.memory", folder, *map(str, (images, steps, workers))]
        done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return tuple(map(float, done.stdout.split()[-4:]))


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the peaks and their ratio, or only a note if `go_on` returns False at the start."""
    if not go_on():
        yield "not run: time is up"
        return
    found = []
    for images in chosen.images:
        driver, worker, together, seconds = peaks(images, chosen.steps, chosen.workers)
        found.append((driver, worker, together))
        each = f"{seconds:.0f} s, {1000 * seconds / images:.0f} ms an image"
        also = f", its largest worker {worker:.0f} MiB, all {together:.0f} MiB" if chosen.workers > 1 else ""
        yield f"peak memory of an audit of {images} images, {chosen.steps} steps each: {driver:.0f} MiB{also} ({each})"
    ratios = [max(each) / min(each) for each in zip(*found, strict=True) if min(each)]
    yield f"ratio {', '.join(f'{ratio:.2f}' for ratio in ratios)} (the mark is {MARK})"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--full", action="store_true", help="120 steps")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--steps", type=int, help="steps per attack (3)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (%(default)s: none)")
    chosen = parser.parse_args(arguments)
    chosen.steps = chosen.steps or (120 if chosen.full else 3)
    return chosen


if __name__ == "__main__":
    child(sys.argv[1], *map(int, sys.argv[2:]))
