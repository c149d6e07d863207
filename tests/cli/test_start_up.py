"""What commands import: no more than they use, since some packages take longer than a small audit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from medpfl.cli import main

AUDIT = ["audit", "data", "--model", "MLP((6,))", "--attack", "iDLG(steps=1)", "--images", "2", "--size", "16"]
PAGES = {"jinja2", "matplotlib"}
FORMATS = {"nibabel", "pydicom"}  # none of which is in a folder of PNG files
OTHERS = {"pandas", "scipy.optimize", "scipy.sparse", "scipy.stats", "torchmetrics", "torchvision"}
PRODUCTS = {
    f"medpfl.{place}"
    for place in ("assumptions.run", "evaluation.run", "federation.run", "reproduction.run", "tradeoff.run")
} | {"medpfl.training.leakage", "medpfl.training.train"}
MISTAKES = [
    ["audit", "--imagse"], ["adit"], ["audit", "no/folder"], ["train", "sampels"], ["audit", "--attack", "iDGL"],
    ["audit", "--defense", "TopK(0.1) | LaplaceNose()"], ["audit", "--model", "LeNett"], ["audit", "--grant", "x"],
    ["frontier", "--defense", "TopK"], ["frontier", "--out", "x", "--limit", "asr<1"], ["audit", "Dicm('x')"],
    ["check-model", "LeNett()"], ["list", "iDGL"],
]  # fmt: skip
# In this order in one process: each command, its exit status, and what it is the first to need.
ROWS: list[tuple[list[str], int, set[str]]] = [
    *(([*words, "--help"], 0, set()) for words in ([], ["audit"], ["frontier"])),
    (["--version"], 0, set()),
    (["audit", "--print-config"], 0, set()),
    *((words, 2, set()) for words in MISTAKES),
    (["list"], 0, {"numpy", "torch"}),
    ([*AUDIT, "--out", "run"], 0, {"scipy"}),  # finished before: it runs no model and draws no page
    (["compare", "run", "run"], 0, set()),
    (
        ["check-model", "MLP((6,))", "--size", "8"],
        0,
        {"torch._dynamo"},
    ),  # as everything that differentiates an update with torch.func
    ([*AUDIT, "--dry-run"], 0, set()),
    (AUDIT, 0, set()),
    (["report", "run"], 0, PAGES),
]
HEAVY = {"numpy", "scipy", "torch", "torch._dynamo", *PAGES, *FORMATS, *OTHERS, *PRODUCTS}

CODE = """
import json, sys
from medpfl.cli import main
for words, status, heavy in json.loads(sys.argv[1]):
    found = main(words)
    assert found == status, (words, found)
    loaded = [name for name in heavy if name in sys.modules]
    assert not loaded, (words, loaded)
"""


@pytest.mark.slow
def test_a_command_imports_only_what_it_uses(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*AUDIT, "--out", "run", "--quiet"]) == 0
    needed: set[str] = set()
    table = []
    for words, status, first in ROWS:
        needed |= first
        table.append([words, status, sorted(HEAVY - needed)])
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(table)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
