"""The side of an engine in a worker process: it keeps the work, and computes tasks."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from medpfl.core.messages import Speech
from medpfl.core.progress import listening
from medpfl.engines.sending import shipped
from medpfl.engines.threads import set_threads

__all__ = ["BEGUN", "begin", "perform"]

BEGUN = 1e-9
"""Share of a task that has begun."""


class _State:
    """State of a worker process between tasks."""

    payload: bytes = b""
    threads: int = 1
    work: Any = None
    share: Any = None
    speech: Speech | None = None


def begin(count: int, share: Any, alive: Connection, speech: Speech | None) -> None:
    """Prepare this process for tasks.

    Args:
        count: number of torch threads.
        share: shared number for the share of the current task that is done.
        alive: a pipe that brings the work, from `medpfl.engines.sending.packed`, and closes as soon as this process
            shall end, at the latest when its parent does. The work is opened with the first task, so that an error is
            that task's.
        speech: the parent's rule for messages.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the parent decides
    try:
        _State.payload = alive.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)
    Thread(target=_end_with, args=(alive,), daemon=True).start()
    _State.threads, _State.share, _State.speech = count, share, speech


def perform(task: bytes) -> bytes:
    """Compute a task, and note the share of it that is done; task and result come as bytes (`shipped`)."""
    if _State.work is None:
        _State.work, _State.payload = pickle.loads(_State.payload), b""
        if "torch" in sys.modules:  # other work does not wait for its import
            set_threads(_State.threads)

    def note(share: float, _: Any) -> None:
        _State.share.value = max(share, BEGUN)

    note(BEGUN, None)
    with listening(note), _State.speech.applied() if _State.speech else nullcontext():
        return shipped(_State.work(pickle.loads(task)))


def _end_with(alive: Connection) -> None:
    with suppress(EOFError, OSError):
        alive.recv_bytes()
    sys.stdout.flush()
    os._exit(0)
