"""Fixtures for tests of attacks in a process of their own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_pages_here(no_pages: None) -> None:
    """Nothing here reads a page."""
