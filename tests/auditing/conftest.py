"""Fixtures of the audit's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit_cases import draw_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten gray pictures in two classes."""
    return draw_folder(tmp_path / "data", {"benign": 5, "malignant": 5})
