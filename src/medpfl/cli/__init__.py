"""The command line: ``medpfl`` and its commands."""

from medpfl.cli.entry import main

__all__ = ["main"]
