"""The notebooks run unchanged with small settings: their cells' code, one after the other."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from medpfl.reproduction import experiments as reproduction

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))

SMALL: dict[str, dict[str, Any]] = {
    "attack_your_images": {"ATTACKS": ["iDLG(steps=2)", "DLG(steps=2)"], "IMAGES": 2},
    "compare_defenses": {
        "ATTACK": "Posterior(steps=3)",
        "DEFENSES": ["LaplaceNoise(scale=0.01)", "TopK(keep=0.1)"],
        "IMAGES": 2,
    },
    "leakage_over_rounds": {"ATTACK": "iDLG(steps=2)", "ROUNDS": 2, "AUDITED": [0, 2], "IMAGES": 2},
    "reproduce_a_table": {},
}
"""What stands in place of the settings of a notebook's first code cell."""


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["cells"]


def code(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]


def short(name: str) -> Any:
    """A study whose attacks take few steps, in its quick form too."""
    found, own = real(name), {"attack": ["iDLG(steps=2)"]}
    parts = [
        part.model_copy(update={"audit": {**part.audit, **own}, "quick": {**part.quick, "audit": own}})
        for part in found.parts
    ]
    return found.model_copy(update={"parts": parts})


real = reproduction.study


def test_each_notebook_has_small_settings():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_holds_no_output(path):
    found = cells(path)
    assert len(found) < 15
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in found if "outputs" in cell)
    assert all(len(line) <= 120 for cell in found for line in "".join(cell["source"]).splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_calls_only_the_public_face(path):
    for text in code(path):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert [alias.name for alias in node.names] == ["medpfl"]
            if isinstance(node, ast.ImportFrom):
                assert node.module in ("pathlib", "PIL")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduction, "study", short)
    space: dict[str, Any] = {}
    first, *others = code(path)
    exec(compile(first, f"{path.name}, settings", "exec"), space)
    assert set(SMALL[path.stem]) <= set(space)
    space |= SMALL[path.stem]
    for i, text in enumerate(others):
        exec(compile(text, f"{path.name}, code {i}", "exec"), space)
    assert re.search("images|ASR", capsys.readouterr().out)
    assert (tmp_path / "runs").is_dir()
