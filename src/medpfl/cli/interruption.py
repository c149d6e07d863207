"""A handler that ends the program without a traceback if Ctrl-C comes during imports, which take a second or two.

Importing this module installs the handler, if the program is the command line. It must come before all other imports.
`KeyboardInterrupt` is not enough there: partly imported modules and C libraries print or swallow it. No results are
lost, because no run has begun.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

__all__ = ["MESSAGE", "STATUS", "interrupted"]

MESSAGE = "medpfl: interrupted; with --out, the same command continues where it stopped"
STATUS = 130


def interrupted(number: int, frame: FrameType | None) -> Any:
    """Raise `KeyboardInterrupt`, or exit at once with status 130 during an import."""
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
