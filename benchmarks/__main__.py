"""``python -m benchmarks``: all parts in a small form; ``python -m benchmarks PART``: one, in its own or in full.

Every part has a --help of its own. What they measure, and their last results: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from benchmarks import adaptive, conditioning, contested, deep, matrix, memory, recipes, verdicts
from benchmarks.scenes import available

PARTS = {
    "recipes": recipes,
    "contested": contested,
    "adaptive": adaptive,
    "conditioning": conditioning,
    "deep": deep,
    "memory": memory,
    "matrix": matrix,
    "verdicts": verdicts,
}
QUICK = {
    "recipes": (4.0, "--images 8 --textbook 1 --recipes DLG iDLG CPL RGAP/idlg"),
    "deep": (6.0, "--iterations 20 --large 2"),
    "contested": (7.5, f"--quick --sets {available()[0]}"),
    "memory": (8.0, "--images 64 640 --steps 2"),
}
"""The form that ends in ten minutes: by part, the minute from which no row of it begins, and its arguments."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one part, named first, with its own arguments; all, briefly, where none is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("part", nargs="?", choices=list(PARTS), help="what to run (all of `make bench`)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the part")
    given = parser.parse_args(arguments)
    if not given.part:
        quick()
        return
    part = PARTS[given.part]
    for row in part.lines(part.parsed(given.arguments)):
        print(row, flush=True)


def quick() -> None:
    """The parts of `QUICK`. What their time does not allow is left out, and named."""
    began = time.monotonic()
    for name, (minutes, arguments) in QUICK.items():
        print(f"\n== {name} {arguments}", flush=True)
        part, end = PARTS[name], began + minutes * 60
        for row in part.lines(part.parsed(arguments.split()), lambda end=end: time.monotonic() < end):
            print(row, flush=True)


if __name__ == "__main__":
    main()
