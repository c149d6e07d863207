"""Fixtures for tests of pages."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def charts() -> None:
    """Draw all charts."""
