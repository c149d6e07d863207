"""Start programs on this machine's loopback interface, and stop exactly those."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that are free now."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@contextmanager
def started(words: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Start a command in a session of its own, and stop that session at the end: the command and what it started.

    It is stopped too if this program gets a signal to end.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{Path(words[0]).name}.log").open("w") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, sign)
                    process.wait(20)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
            process.wait()


def notes(folder: Path) -> list[str]:
    """Return what MedPFL notes in the logs in a folder: updates that were not recorded, filters in the wrong order."""
    return sorted(
        {
            f"{path.relative_to(folder)}: {line.strip()}"
            for path in folder.rglob("*.log")
            for line in path.read_text(errors="replace").splitlines()
            if line.startswith("note: ")
        }
    )


def wait_for(port: int, seconds: float = 60) -> None:
    """Wait until a server listens on a port of the loopback interface."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    raise SystemExit(f"nothing listens on port {port} after {seconds:.0f} s: read the logs")
