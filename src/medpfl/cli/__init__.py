"""The command line: ``medpfl`` and its commands."""

from medpfl.cli.commands import main

__all__ = ["main"]
