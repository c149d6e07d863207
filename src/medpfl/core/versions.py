"""Versions of installed packages. Imports nothing else of MedPFL, since every start reads one."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["version_of"]


def version_of(package: str) -> str:
    """Return a package's installed version, or ``"unknown"`` if it was not installed but put on the path."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
