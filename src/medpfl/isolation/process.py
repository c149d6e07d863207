"""Start and end of the attacks' process, and forwarding of its output."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import IO

from medpfl.core.errors import InputError
from medpfl.isolation.pipes import Pipe

__all__ = ["FOLDER", "Process"]

FOLDER = "medpfl-isolated-"
"""Prefix of the name of its working directory."""
_KEPT = (
    "PATH", "LANG", "LANGUAGE", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED", "PYTHONUTF8",
)  # fmt: skip
_KEPT_STARTS = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "KMP_")
_GRACE = 1.0
"""Grace period in seconds before the process is killed."""
_MOST = (1 << 20, 1 << 32)
"""Maximum bytes of an answer's header and of its tensors."""
_LINES, _WIDTH = 200, 500
"""Maximum number of forwarded lines, and of characters per line."""


class Process:
    """A Python process that receives information from its parent only through a pipe.

    It starts with none of its parent's memory, a few of its environment variables, an empty working directory, and no
    open file except the pipe. It leads its own process group, so that any child processes end with it.

    Args:
        module: module to run, as with ``python -m``.
    """

    def __init__(self, module: str) -> None:
        self.name = "attack"
        self.last: deque[str] = deque(maxlen=3)
        self._folder = tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True)
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, close_fds=True,
                cwd=self._folder.name, env=_environment(self._folder.name), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._folder.cleanup()
            raise InputError(
                f"cannot start a process for your own attack ({error.strerror}): use --no-isolate to run it in this one"
            ) from error
        given, answers, printed = self._process.stdin, self._process.stdout, self._process.stderr
        assert given is not None
        assert answers is not None
        assert printed is not None
        self._ends: tuple[IO[bytes], ...] = (given, answers, printed)
        self.pipe = Pipe(answers.fileno(), given.fileno(), lambda: self._process.poll() is None, _MOST)
        self._speaker = Thread(target=self._pass_on, args=(printed.fileno(),), daemon=True)
        self._speaker.start()

    @property
    def number(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """True once `end` was called."""
        return self._ends[1].closed

    def end(self, grace: float = _GRACE) -> None:
        """End the process and its children, and remove its directory; a second call does nothing.

        Args:
            grace: grace period in seconds before the process is killed.
        """
        given, answers, printed = self._ends
        if self.ended:
            return
        given.close()  # the process ends when its input does
        with contextlib.suppress(OSError):
            _drained(answers.fileno(), grace)
        self._kill()
        self._process.wait()
        self._speaker.join(_GRACE)
        answers.close()
        if not self._speaker.is_alive():
            printed.close()
        self._folder.cleanup()

    def how_it_ended(self) -> str:
        """Return why no answer came, as a message for the user."""
        try:
            status = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._kill()
            return "it closed the connection to the audit"
        self._speaker.join(_GRACE)
        said = f" (it printed: {' / '.join(self.last)})" if self.last else ""
        if status >= 0:
            return f"its process ended with status {status} without an answer{said}"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        hint = "; if it ran out of memory, lower --memory, --batch-size or --size" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}{said}"

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _pass_on(self, printed: int) -> None:
        """Print the process's output line by line, prefixed with the attack's name and without control characters."""
        count, rest = 0, b""
        with contextlib.suppress(OSError, ValueError):
            while part := os.read(printed, 1 << 16):
                *lines, rest = (rest + part).split(b"\n")
                rest = rest[-_WIDTH * 4 :]
                for line in lines:
                    count += 1
                    self._show(line, count)
            if rest:
                self._show(rest, count + 1)

    def _show(self, line: bytes, count: int) -> None:
        text = "".join(c if c.isprintable() else " " for c in line.decode(errors="replace"))[:_WIDTH].rstrip()
        if text:
            self.last.append(text)
        if count <= _LINES:
            print(f"[{self.name}] {text}", file=sys.stderr, flush=True)
        elif count == _LINES + 1:
            print(f"[{self.name}] printed more than {_LINES} lines; hiding the rest", file=sys.stderr, flush=True)


def _environment(folder: str) -> dict[str, str]:
    """Return the variables needed to find Python and its libraries, and those for language and number of threads."""
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith(_KEPT_STARTS)}
    places = [str(Path(place).absolute()) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    ours = Path(__file__).absolute().parents[2]
    if ours.name not in ("site-packages", "dist-packages"):
        places.append(str(ours))  # not installed: this process found it through sys.path
    return {**kept, "TMPDIR": folder, **({"PYTHONPATH": os.pathsep.join(places)} if places else {})}


def _drained(answers: int, seconds: float) -> None:
    """Read the rest of a pipe up to its end, for at most the given number of seconds."""
    until, poll = monotonic() + seconds, select.poll()
    poll.register(answers, select.POLLIN)
    while (left := until - monotonic()) > 0:
        if poll.poll(left * 1000) and not os.read(answers, 1 << 20):
            return
