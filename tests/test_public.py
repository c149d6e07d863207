"""The package's public interface: its names, its registries, and its import cost."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import medpfl
from medpfl.core.spec import registry, summary

HEAVY = {
    "torch",
    "torchvision",
    "monai",
    "torchmetrics",
    "flwr",
    "nvflare",
    "opacus",
    "ray",
    "matplotlib",
    "scipy",
    "pydicom",
}
ROLES = ("attacks", "data", "defenses", "metrics", "models")


def test_public_names_are_sorted_and_resolve():
    assert medpfl.__all__ == sorted(set(medpfl.__all__))
    assert dir(medpfl) == medpfl.__all__
    for name in medpfl.__all__:
        assert getattr(medpfl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Laplace'"):
        medpfl.Laplace  # noqa: B018


def test_the_version_is_that_of_the_installed_package():
    assert medpfl.__version__ == version("medpfl")
    assert "numpy" not in imported("import medpfl; medpfl.__version__")


def test_type_checkers_see_the_same_names():
    source = Path(medpfl.__file__).read_text()
    for name in medpfl.__all__:
        module = getattr(medpfl, name).__module__
        assert f"    from {module} import {name} as {name}\n" in source


@pytest.mark.parametrize("role", ROLES)
def test_registry_is_sorted_and_every_member_says_what_it_is(role):
    package = import_module(f"medpfl.{role}")
    assert package.__all__ == sorted(set(package.__all__))
    for name, member in registry(package).items():
        line = summary(member)
        assert 20 < len(line) < 120, name
        assert line[0].isupper(), name
        assert line.endswith("."), name
        assert not line.startswith(f"{name}("), f"{name} has no docstring of its own"


def imported(code: str) -> set[str]:
    """Return the top modules in a fresh interpreter after some code."""
    report = "import sys; print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    run = [sys.executable, "-W", "error", "-c", f"{code}\n{report}"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_is_light():
    modules = imported("import medpfl; dir(medpfl)")
    assert "medpfl" in modules
    assert not modules & HEAVY
    assert not modules & {"numpy", "pydantic"}


def test_words_of_the_experiment_need_no_torch():
    assert not imported("from medpfl import InputError, Plan, ThreatModel") & HEAVY
