"""``python -m benchmarks.fuzz``: give damaged files to every reader. Each must return images or raise `InputError`.

Prints each kind of failure with the seed that reproduces it. The exit status is 1 if there is any failure.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.fuzz_files import Target, targets
from medpfl.core.errors import InputError
from medpfl.data.images import LabelledImages

PATIENCE = 20
"""Seconds after which a reader counts as hanging."""
MEMORY = 6 * 2**30
"""Memory limit of the process in bytes."""
EXTREMES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff\xff\xff\x7f",
    b"\n",
    b",",
)


class LateError(BaseException):
    """A reader that hangs. No reader mistakes it for a damaged file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Damage and read files until the time is up; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="duration (%(default)s)")
    parser.add_argument("--start", type=int, default=0, help="first seed (%(default)s)")
    parser.add_argument("--only", default="", help="run only targets whose names contain this text")
    given = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    chosen = {name: target for name, target in targets().items() if given.only in name}
    end, seed, failures = time.monotonic() + given.seconds, given.start, {}
    tally = {name: [0, 0] for name in chosen}
    while time.monotonic() < end:
        for name, target in chosen.items():
            refused, failure = attempt(target, seed)
            tally[name][0] += 1
            tally[name][1] += refused
            if failure and (name.split()[0], failure) not in failures:
                failures[name.split()[0], failure] = seed
                print(f"{name}, seed {seed}: {failure}", flush=True)
        seed += 1
    for name, (tried, refused) in tally.items():
        print(f"{name}: {tried} files, {refused} refused")
    return int(bool(failures))


def attempt(target: Target, seed: int) -> tuple[bool, str]:
    """Return True if a damaged file was refused, and the forbidden failure, if any."""
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as root:
        for name, content in target.files.items():
            path = Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(target.pack(damaged(content, random)) if name == target.damaged else content)
        try:
            with impatient():
                found = target.read(Path(root))
        except InputError:
            return True, ""
        except (Exception, LateError) as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in where if "medpfl" in frame.filename][-1:] or where[-1:]
            return False, f"{type(error).__name__} at {Path(ours[0].filename).name}:{ours[0].lineno}: {error}"[:200]
        return False, wrong(found)


def wrong(found: object) -> str:
    """Return the fault in the images that were read, or ``""``."""
    if not isinstance(found, LabelledImages):
        return ""
    if not all(part.isfinite().all() and part.min() >= 0 and part.max() <= 1 for part in found.parts()):
        return "images that are not in [0, 1]"
    lengths = {len(part) for part in (found.images, found.labels, found.names, found.patients)}
    return "" if lengths == {len(found)} else "names, labels and images of different numbers"


@contextmanager
def impatient() -> Iterator[None]:
    """Raise an error after `PATIENCE` seconds."""

    def late(*_: object) -> None:
        raise LateError(f"not done after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Make one to eight changes. Half of them are in the first kilobyte, where headers are."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        reach = min(len(data), 1024) if random.random() < 0.5 else len(data)
        place, other = (int(random.integers(0, reach + 1)) for _ in range(2))
        match int(random.integers(0, 6)):
            case 0 if data:
                data[place % len(data)] ^= 1 << int(random.integers(0, 8))
            case 1:
                new = EXTREMES[int(random.integers(0, len(EXTREMES)))]
                data[place : place + len(new)] = new
            case 2:
                del data[place : place + int(random.integers(1, 64))]
            case 3:
                data[place:place] = data[other : other + int(random.integers(1, 64))]
            case 4:
                data[place : place + 8] = random.bytes(8)
            case 5 if random.random() < 0.3:
                del data[place:]
    return bytes(data)


if __name__ == "__main__":
    sys.exit(main())
