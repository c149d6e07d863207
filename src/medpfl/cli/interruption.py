"""The end of the program: without a traceback if Ctrl-C comes during imports, which take a second or two, and at once.

Importing this module installs a handler for Ctrl-C, if the program is the command line. It must come before all other
imports. `KeyboardInterrupt` is not enough there: partly imported modules and C libraries print or swallow it. No
results are lost, because no run has begun. In the end, Python would look for garbage among all objects of torch, which
takes a second: there is nobody left who needs the memory.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any

__all__ = ["MESSAGE", "STATUS", "handled", "interrupted"]

MESSAGE = "medpfl: interrupted; with --out, the same command continues where it stopped"
STATUS = 130


_HANDLED = ContextVar("_HANDLED", default=False)


@contextmanager
def handled() -> Iterator[None]:
    """State that the caller handles `KeyboardInterrupt` while the context lasts."""
    before = _HANDLED.set(True)
    try:
        yield
    finally:
        _HANDLED.reset(before)


def interrupted(number: int, frame: FrameType | None) -> Any:
    """Raise `KeyboardInterrupt` within `handled`; outside it and in imports, exit with status 130."""
    if not _HANDLED.get() or any("importlib._bootstrap" in code.co_filename for code in _stack(frame)):
        os.write(2, f"{MESSAGE}\n".encode())
        os._exit(STATUS)
    signal.default_int_handler(number, frame)


def _stack(frame: FrameType | None) -> Iterator[CodeType]:
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _place(path: str) -> tuple[str, ...]:
    """Return the names of a file and its folder."""
    return tuple(path.replace("\\", "/").split("/")[-2:])


def _is_ours(program: str) -> bool:
    if program == "-m":  # while the package itself is imported
        return not {"medpfl", "medpfl.cli"}.isdisjoint(sys.orig_argv)
    return _place(program)[-1] in ("medpfl", "medpfl.exe") or _place(program) == ("medpfl", "__main__.py")


if _is_ours(sys.argv[0] if sys.argv else ""):
    atexit.register(gc.freeze)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)
