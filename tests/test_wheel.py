"""The wheel, in an environment outside the repository: it holds all that the demo needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "src")

pytestmark = pytest.mark.extra


def call(*words: str | Path, cwd: Path) -> str:
    """Run a program without this process's import path, and return its output."""
    apart = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=apart, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs' folder of a new environment with the wheel; the dependencies are this environment's own."""
    tree, home = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("home")
    for name in NEEDED:
        ignored = shutil.ignore_patterns("*.egg-info", "__pycache__", "build")
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(
            ROOT / name, tree / name, **({"ignore": ignored} if (ROOT / name).is_dir() else {})
        )
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    alone = ("--quiet", "--no-index", "--no-deps")
    call(*pip, "wheel", *alone, "--no-build-isolation", "--wheel-dir", home, tree, cwd=home)
    (wheel,) = home.glob("medpfl-*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", home / "venv", cwd=home)
    python = home / "venv" / "bin" / "python"
    call(*pip, "--python", python, "install", *alone, wheel, cwd=home)
    shutil.rmtree(tree)
    # Files named *.pth in a folder that is added this way are not read, so the checkout stays out of sight.
    own = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    (own / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python.parent


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """Return an empty folder, to start programs in."""
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_the_package_comes_from_the_wheel_and_knows_its_version(place, empty):
    found = call(place / "python", "-c", "import medpfl; print(medpfl.__file__, medpfl.__version__)", cwd=empty)
    path, version = found.split()
    assert Path(path).is_relative_to(place.parent)
    assert call(place / "medpfl", "--version", cwd=empty).strip() == f"medpfl {version}"
    assert call(place / "python", "-m", "medpfl", "--version", cwd=empty).strip() == f"medpfl {version}"


def test_the_demo_runs_in_an_empty_folder(place, empty):
    """The demo itself, with fewer images: with all 24 it takes minutes."""
    said = call(place / "medpfl", "demo", "--images", "2", "--out", "run", cwd=empty)
    assert "LaplaceNoise" in said
    cells = json.loads((empty / "run" / "share" / "summary.json").read_text())
    assert {cell["attack"] for cell in cells} == {"iDLG()"}
    assert "<h1" in (empty / "run" / "share" / "report.html").read_text()
    assert (empty / "run" / "private" / "report-with-images.html").exists()


def test_the_wheel_holds_the_experiments_of_the_paper_and_the_typing_mark(place, empty):
    code = (
        "from importlib.resources import files; own = files('medpfl');"
        "print(len([p for p in (own / 'reproduction').iterdir() if p.name.endswith('.yaml')]),"
        "(own / 'py.typed').is_file(), (own / 'reporting' / 'report.css').is_file())"
    )
    count = len(list((ROOT / "src" / "medpfl" / "reproduction").glob("*.yaml")))
    assert call(place / "python", "-c", code, cwd=empty).split() == [str(count), "True", "True"]
