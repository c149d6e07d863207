"""The ends of a command that did not end well: an error in words, and the exit status."""

from __future__ import annotations

import errno
import os
import sys

from jsonargparse import Namespace

from medpfl.cli.machine import print_json
from medpfl.cli.words import spelled
from medpfl.core.errors import InputError
from medpfl.core.messages import may_show, say, told

__all__ = ["BAD_INPUT", "DONE", "as_json", "ended", "hung_up", "of_disk", "refused"]

DONE, BAD_INPUT, _READER_GONE = 0, 2, 141
"""Exit statuses: for finished work, wrong input or an experiment that failed, and an output that its reader closed."""


def as_json(given: Namespace | int | None, words: list[str]) -> bool:
    """Return True if the result was asked for as JSON, also by words that cannot be parsed."""
    if isinstance(given, Namespace):
        return bool(given[given.subcommand].get("json"))
    try:
        return "--json" in spelled(words)  # where the value of another option is no word of its own
    except InputError:
        return "--json" in words


def refused(message: str, machines: bool) -> int:
    """Print an error for people, and for `machines` too, and return the exit status."""
    say(f"medpfl: error: {message}")
    if machines:
        print_json({"error": told(message, may_show(sys.stdout)), "status": BAD_INPUT})
    return BAD_INPUT


def ended(end: SystemExit) -> int:
    """Return the exit status if third-party code ended the program: it must not count as success."""
    if isinstance(end.__context__, BrokenPipeError):  # from rich, if the output was closed
        return hung_up()
    say(f"medpfl: error: code called by the experiment ended the program (SystemExit: {end.code})")
    return BAD_INPUT


def hung_up() -> int:
    """Return the exit status for a closed output pipe, and suppress all further output, including at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _READER_GONE


def of_disk(error: OSError) -> str:
    """Return an error of the disk in words, with a remedy if the disk is full."""
    where = f": '{error.filename}'" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "; free some space and repeat the command: with --out, finished work is kept" if full else ""
    return f"{(error.strerror or str(error)).lower()}{where}{hint}"
