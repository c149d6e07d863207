"""Ends the program without a traceback when it is interrupted while it imports, which takes a second or two.

Importing this module installs that, if the program is the command line's own: it comes before all other imports. An
interruption inside an import cannot be left to `KeyboardInterrupt`: half-made modules and libraries in C print or
swallow it. Nothing of a run is lost, since none has begun.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

__all__ = ["MESSAGE", "STATUS", "interrupted"]

MESSAGE = "medpfl: interrupted; the same command continues with --out where it stopped"
STATUS = 130


def interrupted(number: int, frame: FrameType | None) -> Any:
    """Raise `KeyboardInterrupt`, or leave at once with status 130 if an import is under way."""
    above = frame
    while above is not None:
        if "importlib._bootstrap" in above.f_code.co_filename:
            os.write(2, f"{MESSAGE}\n".encode())
            os._exit(STATUS)
        above = above.f_back
    signal.default_int_handler(number, frame)


def _is_ours(program: str) -> bool:
    name = program.replace("\\", "/").rpartition("/")[2]
    return name in ("medpfl", "medpfl.exe", "cli/commands.py")


if _is_ours(sys.argv[0] if sys.argv else "") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupted)
