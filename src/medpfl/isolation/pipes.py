"""Length-prefixed frames over a pair of pipes: a JSON header and a payload in bytes. Does not import torch."""

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
"""Milliseconds between two checks for whether the other process is alive."""


class DamagedFrameError(Exception):
    """An error because the received bytes are not a frame, or exceed the size limit."""


class Pipe:
    """One process's two ends: one to read from, one to write to.

    Args:
        source: file descriptor to read from.
        sink: file descriptor to write to. It becomes non-blocking, so that a writer notices when the reader has ended.
        alive: function that returns True while the other process runs. It is called while the pipe is not ready.
        most: maximum size in bytes of a received header and payload; ``None`` for no limit.
    """

    def __init__(
        self, source: int, sink: int, alive: Callable[[], bool] = lambda: True, most: tuple[int, int] | None = None
    ) -> None:
        self.source, self.sink, self.alive, self.most = source, sink, alive, most
        self._sending = Lock()
        os.set_blocking(sink, False)

    def send(self, head: dict[str, Any], payload: bytes = b"") -> None:
        """Write one frame. Thread-safe.

        Raises:
            EOFError: the other process has ended.
        """
        text = json.dumps(head).encode()
        with self._sending:
            for part in (_LENGTHS.pack(len(text), len(payload)) + text, payload):
                self._write(memoryview(part))

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Read one frame and return its header and payload.

        Raises:
            EOFError: the other process has ended.
            DamagedFrameError: the received bytes are not a frame, or exceed `most`.
        """
        sizes = _LENGTHS.unpack(self._read(_LENGTHS.size))
        for size, most, what in zip(sizes, self.most or (), ("header", "payload"), strict=False):
            if size > most:
                raise DamagedFrameError(f"a {what} of {size:,} bytes, above the limit of {most:,}")
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
        """Wait until the descriptor is ready.

        A grandchild may hold the pipe open after the other process has ended, so `alive` is asked too.

        Raises:
            EOFError: the other process has ended.
        """
        poll = select.poll()
        poll.register(descriptor, event)
        while not poll.poll(_PAUSE):
            if not self.alive() and not poll.poll(0):
                raise EOFError
