"""Code in the documents runs: Python as it stands, commands as far as the command line parses them.

`tests/test_tutorials.py` runs the commands of the tutorials and the quick start, and compares the output shown there.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from medpfl.cli.parser import parser_of
from medpfl.cli.words import spelled
from medpfl.core.experiments.evaluation import EDITIONS
from tests.documents import ROOT, blocks, file_of

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
KINDS = {"python", "console", "text", "diff"}
"""Languages of code blocks: Python runs, commands are parsed or run, and the rest is output or part of a file."""


def commands(page: Path) -> list[list[str]]:
    lines = [line[2:] for text in blocks(page, "console") for line in text.splitlines() if line.startswith("$ medpfl ")]
    return [shlex.split(line)[1:] for line in lines]


COMMANDS = [pytest.param(words, id=" ".join(words)[:60]) for page in PAGES for words in commands(page)]


def train(model: nn.Module) -> None:
    """Stand in for a reader's own training loop."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    nn.functional.cross_entropy(model(torch.rand(2, 1, 32, 32)), torch.tensor([0, 1])).backward()
    optimizer.step()


def test_there_is_something_to_run():
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 4
    assert len(COMMANDS) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python(page, tmp_path, monkeypatch):
    """A page's blocks run one after the other, as a reader would run them."""
    document = ModuleType("document")
    document.model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))
    document.loss = nn.functional.cross_entropy(document.model(torch.rand(1, 1, 32, 32)), torch.tensor([1]))
    document.torch, document.train = torch, train
    monkeypatch.setitem(sys.modules, "document", document)  # where a dataclass looks for its names
    few = {name: replace(one, attack="WorstCase(evaluations=100)", images=2) for name, one in EDITIONS.items()}
    monkeypatch.setattr("medpfl.evaluation.run.EDITIONS", few)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for text in blocks(page, "python"):
        if file := file_of(text):
            (tmp_path / file).write_text(text)
            monkeypatch.delitem(sys.modules, Path(file).stem, raising=False)
        exec(compile(text.replace("iDLG(steps=300)", "iDLG(steps=10)"), page.name, "exec"), vars(document))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_code_block_is_of_a_kind_that_is_tested(page):
    fences = re.findall(r"^ *```(.*)$", page.read_text(), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert set(fences[::2]) <= KINDS
    assert set(fences[1::2]) <= {""}
    texts = [text for text in blocks(page, "text") if text.startswith("{")]
    assert all(json.loads(text) for text in texts)


def test_what_contributing_shows_passes_the_linter(tmp_path):
    """Pasted into the package, it needs no other edit."""
    for number, text in enumerate(blocks(ROOT / "CONTRIBUTING.md", "python")):
        (tmp_path / f"part_{number}.py").write_text(text + "\n")
    for check in (["check"], ["format", "--check"]):
        words = [sys.executable, "-m", "ruff", *check, "--no-cache", "--config", ROOT / "pyproject.toml", tmp_path]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("words", COMMANDS)
def test_commands(words):
    parser_of().parse_args(spelled(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages(page):
    """No page links to a missing file."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
