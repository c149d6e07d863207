"""The tutorials and the quick start, run as a reader would: every code block, and the output that they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, file_of

PAGES = [ROOT / "docs" / "quickstart.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLACEHOLDERS = ("path/to", "my_package", "pip install")
"""Commands with these are for a reader's own files; `tests/test_documents.py` parses them."""
DEMO = ("make demo", "medpfl demo --out runs/demo --force")
"""A target, and the command that it runs in the Makefile."""
FEWER = {
    "quickstart": {DEMO[1]: f"{DEMO[1]} --images 8"},
    "images": {"--images 24": "--images 12"},
    "verdict": {"--images 24 --out runs/leaks": "--images 8 --out runs/leaks"},
    "defense": {"--images 32": "--images 20"},
}
"""Parts of a page's commands, and what is run in place of them: on fewer images. No number of a page is compared.

The words stay the same. A verdict of no leak needs 20 images or so.
"""


def general(text: str) -> str:
    """Return a text without what may differ between machines: numbers, random names, and the space between words."""
    text = re.sub(r"(update|p)-[0-9a-f]{8,16}", r"\1-*", text)
    text = re.sub(r"[\u2212-]?\d+(?:[.,]\d+)*(?:e-\d+)?", "#", text)
    return re.sub(r"\s+", " ", re.sub(r"─+", "─", text)).strip()


def run(words: list[str] | str, place: Path) -> str:
    """Run a program, or a line of a shell, and return what it prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    modules = os.pathsep.join([str(ROOT / "src"), str(place)])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": modules, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    shell = ["bash", "-c", words] if isinstance(words, str) else words
    done = subprocess.run(shell, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def commands(text: str) -> list[str]:
    """Return the commands of a console block that can run without a reader's own files."""
    lines = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    return [line.replace(*DEMO) for line in lines if not any(word in line for word in PLACEHOLDERS)]


def shorter(command: str, page: str) -> str:
    """Return a page's command on fewer images."""
    for part, other in FEWER.get(page, {}).items():
        command = command.replace(part, other)
    return command


def test_the_demo_is_the_makefile_s():
    assert "$(BIN)/" + DEMO[1] in (ROOT / "Makefile").read_text()


def test_general_leaves_words():
    assert general("RGAP   24  86 to 100 %\n──── p-f537af57285a2b90") == general(
        "RGAP 4 3 to 29 %\n─ p-1111111111111111"
    )
    assert general("no leak found") != general("leaks")


def test_there_are_commands_in_every_page():
    found = {
        page.stem: [line for kind, text in FENCE.findall(page.read_text()) for line in commands(text)] for page in PAGES
    }
    assert len(found) == 7
    assert all(found.values())
    for page, parts in FEWER.items():
        assert all(any(part in line for line in found[page]) for part in parts), page


@pytest.mark.extra
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_and_prints_what_it_shows(page, tmp_path):
    """A text block shows what the block before it prints; a line of three dots stands for lines left out."""
    printed = ""
    for number, (kind, text) in enumerate(FENCE.findall(page.read_text())):
        if kind == "python":
            file = file_of(text) or f"block_{number}.py"
            (tmp_path / file).write_text(text)
            printed = "" if file_of(text) else run([sys.executable, file], tmp_path)
        elif kind == "console":
            printed = "".join(run(shorter(line, page.stem), tmp_path) for line in commands(text))
        elif printed:
            rest = general(printed)
            for part in re.split(r"^\.\.\.\n", text, flags=re.MULTILINE):
                found = rest.find(general(part))
                assert found >= 0, f"{page.name} shows what is not printed:\n{part}\nprinted:\n{printed}"
                rest = rest[found:]
