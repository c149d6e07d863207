"""The program for a user's own attacks, which an audit starts as ``python -m medpfl.isolation.worker``.

It redirects the standard streams before it imports anything that might print.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import traceback
from pathlib import Path
from threading import Thread

from medpfl.isolation.pipes import Pipe
from medpfl.isolation.process import FOLDER
from medpfl.isolation.system import active, harden

__all__ = ["main"]

_PAUSE = 1000
"""Milliseconds between two checks for whether the parent process is still the same."""


def main() -> None:
    """Answer requests until the parent has ended."""
    folder, parent = Path.cwd(), os.getppid()
    pipe = _pipe()
    Thread(target=_watch, args=(pipe.source, parent, folder), daemon=True).start()
    harden()
    system = active()
    try:
        head, _ = pipe.receive()
        sys.path[:] = head["path"]
        from medpfl.isolation.answers import Answers

        answers = Answers(pipe, head["folder"], head["numerics"])
        pipe.send({"system": system, "tensors": []})
        while True:
            answers.answer()
    except EOFError:
        _leave(folder)
    except BaseException:
        with contextlib.suppress(Exception):  # there may be nobody left to read it
            traceback.print_exc()
            sys.stderr.flush()
        _leave(folder, 1)


def _pipe() -> Pipe:
    """Return the pipe to the parent, on descriptors of its own. Standard output then goes to standard error."""
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  (it is a file)
    return Pipe(source, sink)


def _watch(source: int, parent: int, folder: Path) -> None:
    """End this process as soon as the parent has ended, even while an attack runs."""
    poll = select.poll()
    poll.register(source, 0)  # poll always reports a closed other end
    while not poll.poll(_PAUSE) and os.getppid() == parent:
        pass
    _leave(folder)


def _leave(folder: Path, status: int = 0) -> None:
    """Remove the working directory and end at once, without running exit handlers registered by an attack."""
    if folder.name.startswith(FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(status)


if __name__ == "__main__":
    main()
