"""Compare the rows of two checkouts: three audits, a training and a frontier, by command line.

    python -m benchmarks.same_rows OLD NEW

Run it before you merge a change that must not change any measurement. OLD and NEW are checkouts with the same
dependencies. Rows are compared field by field, except for seconds, dates, versions and study indices, which differ
between any two runs. The exit status is 1 if a row differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = {
    "audit of two attacks under two defenses": [
        "audit", "--model", "LeNet('idlg')", "--attack", "iDLG(steps=60)", "--attack", "RGAP", "--images", "8",
        "--defense", "LaplaceNoise(scale=0.01)", "--defense", "TopK(keep=0.3) | GaussianNoise(scale=0.001)",
        "--draws", "2",
    ],
    "audit of batches, secure aggregation and DP-SGD": [
        "audit", "--model", "MLP(hidden=(16,))", "--attack", "DLG(steps=30)", "--attack", "CPL(steps=30)",
        "--batch-size", "2", "--images", "8", "--clients", "2", "--defense", "SecAggPlus()", "--defense", "DPSGD()",
    ],
    "audit of local steps and batch norm": [
        "audit", "--model", "ConvNet(width=4, depth=1, norm='batch')", "--attack", "GradInv(steps=20)", "--images", "4",
        "--algorithm", "FedAvg", "--batch-size", "2", "--local-images", "4", "--epochs", "2", "--size", "16",
    ],
    "training": [
        "train", "--model", "MLP(hidden=(8,))", "--clients", "3", "--rounds", "4", "--fraction", "0.7",
        "--batch-size", "4", "--defense", "TopK(keep=0.3, feedback=True)", "--size", "16",
    ],
    "frontier": [
        "frontier", "--model", "MLP(hidden=(6,))", "--clients", "2", "--rounds", "2", "--batch-size", "4",
        "--size", "16", "--defense", "LaplaceNoise(scale=geom(0.001, 0.1, 2))", "--attack", "iDLG(steps=20)",
        "--images", "6",
    ],
}  # fmt: skip
"""Command lines for both checkouts, without --out."""

_OTHERWISE = ("seconds", "date", "versions", "image", "patient", "nearest_image")
_ROWS = ("findings.jsonl", "rounds.jsonl")


def rows_of(checkout: Path, words: list[str], out: Path) -> list[dict[str, object]]:
    """Run a command with a checkout's code; return its rows without empty fields, and without those of `_OTHERWISE`."""
    command = [sys.executable, "-m", "medpfl.cli", *words, "--out", str(out), "--quiet"]
    code = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    subprocess.run(command, check=True, env=code, stdout=subprocess.DEVNULL)
    files = sorted((run_of(path), path) for path in out.rglob("*.jsonl") if path.name in _ROWS)
    rows = [json.loads(line) for _, path in files for line in path.read_text().splitlines()]
    # An older checkout lacks a new field, which is empty in rows of attacks that do not fill it.
    return [{k: v for k, v in row.items() if k not in _OTHERWISE and v not in (None, "")} for row in rows]


def run_of(rows: Path) -> str:
    """Return the name of the run directory that a file of rows belongs to."""
    return (rows.parent.parent if rows.parent.name == "share" else rows.parent).name


def compared(one: list[dict[str, object]], other: list[dict[str, object]]) -> str:
    """Return ``"equal"``, or the difference between two lists of rows."""
    if len(one) != len(other) or not one:
        return "different in number"
    pairs = list(zip(one, other, strict=True))
    fields = {key for a, b in pairs for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
    return f"different in {', '.join(sorted(fields))}" if fields else "equal"


def main(old: str, new: str) -> int:
    """Print a line for each run, and return 1 if rows differ."""
    found = []
    for name, words in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            one = rows_of(Path(old).resolve(), words, Path(folder, "old", "run"))
            other = rows_of(Path(new).resolve(), words, Path(folder, "new", "run"))
        found.append(compared(one, other))
        print(f"{name}: {len(one)} and {len(other)} rows, {found[-1]}", flush=True)
    return int(any(said != "equal" for said in found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
