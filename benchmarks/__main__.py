"""``python -m benchmarks``: run a small form of the main benchmarks. ``python -m benchmarks PART``: run one part.

Every part has its own --help. benchmarks/README.md describes the parts; benchmarks/results has their last results.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from benchmarks import (
    adaptive,
    capacity,
    conditioning,
    contested,
    deep,
    engines,
    filters,
    kills,
    label_counts,
    local_steps,
    matching,
    matrix,
    memory,
    recipes,
    separation,
    silence,
    small_networks,
    sources,
    step_orders,
    verdicts,
    vit_limits,
    worst_case,
)
from benchmarks.scenes import available

PARTS = {
    "recipes": recipes,
    "contested": contested,
    "adaptive": adaptive,
    "conditioning": conditioning,
    "capacity": capacity,
    "deep": deep,
    "engines": engines,
    "filters": filters,
    "kills": kills,
    "label_counts": label_counts,
    "local_steps": local_steps,
    "memory": memory,
    "matching": matching,
    "matrix": matrix,
    "separation": separation,
    "silence": silence,
    "small_networks": small_networks,
    "sources": sources,
    "step_orders": step_orders,
    "verdicts": verdicts,
    "vit_limits": vit_limits,
    "worst_case": worst_case,
}
QUICK = {
    "recipes": (4.0, "--images 8 --textbook 1 --recipes DLG iDLG CPL RGAP/idlg"),
    "deep": (6.0, "--iterations 20 --large 2"),
    "contested": (7.5, f"--quick --sets {available()[0]}"),
    "memory": (8.0, "--images 64 640 --steps 2"),
}
"""The form that ends in ten minutes: for each part, the minute after which no row begins, and its arguments."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the part that comes first, with its own arguments; without a part, run `quick`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("part", nargs="?", choices=list(PARTS), help="part to run (default: all of `make bench`)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments for the part")
    given = parser.parse_args(arguments)
    if not given.part:
        quick()
        return
    part = PARTS[given.part]
    for row in part.lines(part.parsed(given.arguments)):
        print(row, flush=True)


def quick() -> None:
    """Run the parts in `QUICK`. Rows beyond the time limit are named and skipped."""
    began = time.monotonic()
    for name, (minutes, arguments) in QUICK.items():
        print(f"\n== {name} {arguments}", flush=True)
        part, end = PARTS[name], began + minutes * 60
        for row in part.lines(part.parsed(arguments.split()), lambda end=end: time.monotonic() < end):
            print(row, flush=True)


if __name__ == "__main__":
    main()
