"""Length-prefixed frames over a pair of pipes: a JSON header and a payload of bytes. Free of torch."""

from __future__ import annotations

import json
import os
import select
import struct
from collections.abc import Callable
from threading import Lock
from typing import Any

__all__ = ["DamagedFrameError", "Pipe"]

_LENGTHS = struct.Struct("<QQ")
_CHUNK = 1 << 20
_PAUSE = 200
"""Milliseconds between two looks at whether the other process is alive."""


class DamagedFrameError(Exception):
    """What came through the pipe is no frame, or a larger one than is read."""


class Pipe:
    """The two ends that one process has.

    Args:
        source: descriptor that is read.
        sink: descriptor that is written; made non-blocking, so that a writer notices when the reader is gone.
        alive: whether the other process still runs; asked while the pipe is silent.
        most: bytes of a header and of a payload that are read, at most.
    """

    def __init__(
        self, source: int, sink: int, alive: Callable[[], bool] = lambda: True, most: tuple[int, int] | None = None
    ) -> None:
        self.source, self.sink, self.alive, self.most = source, sink, alive, most
        self._sending = Lock()
        os.set_blocking(sink, False)

    def send(self, head: dict[str, Any], payload: bytes = b"") -> None:
        """Writes one frame; threads may call it at the same time.

        Raises:
            EOFError: the other process is gone.
        """
        text = json.dumps(head).encode()
        with self._sending:
            for part in (_LENGTHS.pack(len(text), len(payload)) + text, payload):
                self._write(memoryview(part))

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Reads one frame.

        Raises:
            EOFError: the other process is gone.
            DamagedFrameError: what came is no frame, or larger than `most`.
        """
        sizes = _LENGTHS.unpack(self._read(_LENGTHS.size))
        for size, most, what in zip(sizes, self.most or (), ("header", "payload"), strict=False):
            if size > most:
                raise DamagedFrameError(f"a {what} of {size:,} bytes, of which at most {most:,} are read")
        text, payload = map(self._read, sizes)
        try:
            head = json.loads(text)
        except (ValueError, RecursionError):
            raise DamagedFrameError("a header that is not JSON") from None
        if not isinstance(head, dict):
            raise DamagedFrameError("a header that is not a JSON object")
        return head, payload

    def _write(self, part: memoryview) -> None:
        while part:
            self._wait(self.sink, select.POLLOUT)
            try:
                part = part[os.write(self.sink, part[:_CHUNK]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise EOFError from None

    def _read(self, size: int) -> bytes:
        read = bytearray()
        while len(read) < size:
            self._wait(self.source, select.POLLIN)
            part = os.read(self.source, min(size - len(read), _CHUNK))
            if not part:
                raise EOFError
            read += part
        return bytes(read)

    def _wait(self, descriptor: int, event: int) -> None:
        """Returns when the descriptor is ready. A grandchild may hold the pipe open after the other process ended."""
        poll = select.poll()
        poll.register(descriptor, event)
        while not poll.poll(_PAUSE):
            if not self.alive() and not poll.poll(0):
                raise EOFError
