"""A sign of life: a line that moves at least every two seconds while a command works. Does not import torch.

It says since when the command works, what it does now, how much of it is done, and when it will probably end.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from time import monotonic
from typing import Any, TextIO

from medpfl.core import progress
from medpfl.core.messages import may_show, told

__all__ = ["Pulse", "clock", "pulsing"]

EVERY, RARE, LONG = 1.5, 20.0, 600.0
"""Seconds between two lines in a log: at first, and once the command has worked for `LONG` seconds."""
_IMPORTS, _OFTEN = 15.0, 1.0
"""Seconds in which a command imports packages, and the most between two lines then: an import holds the thread back."""
_MOVES = 0.25
"""Seconds between two changes of the line on a terminal or in a notebook."""
_WIDE = 24

Left = Callable[[], float | None]


def clock(seconds: float) -> str:
    """Return a duration for people.

    >>> clock(5), clock(90), clock(7200)
    ('5 s', '1 min 30 s', '2 h 0 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _nameless(text: str) -> str:
    return told(text, shown=False)


@dataclass(eq=False)
class Pulse:
    """The state of a command's work. The work changes it, and a thread shows it.

    Attributes:
        what: the work, if its phase (`medpfl.core.progress.phase`) does not say it.
        done, total, unit: how much is done; without a total, it is not known.
        said: the latest report from within a piece of work.
        left: seconds that are probably left for the counted work.
        began: time of the start, by `time.monotonic`.
    """

    what: str = ""
    done: float = 0.0
    total: int = 0
    unit: str = ""
    said: str = ""
    left: Left = lambda: None
    began: float = field(default_factory=lambda: monotonic())  # noqa: PLW0108  (a test replaces the clock)

    @contextmanager
    def counting(self, total: int, done: float, unit: str, left: Left | None = None) -> Iterator[Callable[..., None]]:
        """Count work in a context; yield a callback that takes what is done now, how much is done, and what it says.

        Without `left`, the time that is left is that at the mean speed so far.
        """
        kept = {name: getattr(self, name) for name in ("what", "done", "total", "unit", "said", "left")}
        started, first = monotonic(), done

        def at_this_speed() -> float | None:
            ahead = self.done - first
            return None if ahead <= 0 else (monotonic() - started) * (total - self.done) / ahead

        def show(what: str, done: float, said: str = "") -> None:
            self.what, self.done, self.said = what, done, said

        self.what, self.done, self.total, self.unit, self.said = "", done, total, unit, ""
        self.left = left or at_this_speed
        try:
            yield show
        finally:
            for name, value in kept.items():
                setattr(self, name, value)

    def line(self, shown: Callable[[str], str] = _nameless) -> str:
        """Return the line for now; `shown` makes words fit to be printed, without names by default."""
        passed = timedelta(seconds=int(monotonic() - self.began))
        counted = f"{int(self.done)} of {self.total} {self.unit}" if self.total else ""
        what, *_ = shown(": ".join(filter(None, (progress.during(), self.what)))).splitlines() or [""]
        words = [counted, what, self.said, self._end()]
        return "  ".join([str(passed), *filter(None, words)])

    def bar(self) -> str:
        """Return the share that is done as a bar; ``""`` if it is not known."""
        if not self.total:
            return ""
        full = int(_WIDE * min(1.0, self.done / self.total))
        return f"{'━' * full}{'╌' * (_WIDE - full)}  "

    def _end(self) -> str:
        left, after = self.left(), progress.seconds_later()
        if left is None or after is None:
            return ""
        until = datetime.now().astimezone() + timedelta(seconds=left + after)
        return f"about {clock(left + after)} left, until {until:%H:%M}"


_active: list[Pulse] = []


@contextmanager
def pulsing(visible: bool) -> Iterator[Pulse]:
    """Yield a pulse, shown while the context lasts if `visible`; inside another one, yield that one."""
    if not visible or _active:
        yield _active[-1] if visible else Pulse()
        return
    pulse = Pulse()
    _active.append(pulse)
    try:
        with _shown(pulse):
            yield pulse
    finally:
        _active.remove(pulse)


def _shown(pulse: Pulse) -> Any:
    if not EVERY:
        return nullcontext()
    if "ipykernel" in sys.modules:
        return _in_notebook(pulse)
    moves = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return _on_terminal(pulse) if moves else _in_log(pulse)


def _fit_for(stream: TextIO) -> Callable[[str], str]:
    """Return a function that replaces words which a stream may not show; it looks for names once for each text."""
    return cache(lambda text: told(text, may_show(stream)))


@contextmanager
def _in_log(pulse: Pulse) -> Iterator[None]:
    """Print lines on standard error, fewer after some minutes."""
    stream = sys.stderr
    shown = _fit_for(stream)

    def beat() -> float:
        with suppress(OSError, ValueError):  # the log's reader may be gone: the work goes on
            print(pulse.line(shown), file=stream, flush=True)
        passed = monotonic() - pulse.began
        return RARE if passed >= LONG else min(EVERY, _OFTEN) if passed < _IMPORTS else EVERY

    with _beating(beat, min(EVERY, _OFTEN)):
        yield


@contextmanager
def _on_terminal(pulse: Pulse) -> Iterator[None]:
    """Show one line that changes, and goes away at the end. Other output goes above it."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def drawn() -> Text:
        return Text(pulse.bar() + pulse.line(shown), no_wrap=True, overflow="ellipsis")

    shown = _fit_for(sys.stderr)

    with Live(
        get_renderable=drawn,
        console=Console(stderr=True, highlight=False),
        refresh_per_second=1 / _MOVES,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ):
        yield


@contextmanager
def _in_notebook(pulse: Pulse) -> Iterator[None]:
    """Show one line below the cell, which changes."""
    from IPython.display import Pretty, display  # type: ignore[import-not-found]  (only where a notebook runs)

    class Line(Pretty):
        def __repr__(self) -> str:
            return str(self.data)

    def drawn() -> Any:
        return Line(pulse.bar() + pulse.line(shown))

    shown = _fit_for(sys.stdout)  # kept in the notebook's file

    handle = display(drawn(), display_id=True)

    def beat() -> float:
        handle.update(drawn())
        return 2 * _MOVES

    with _beating(beat, _MOVES):
        yield
    handle.update(Line(f"done in {clock(monotonic() - pulse.began)}"))


@contextmanager
def _beating(beat: Callable[[], float], first: float) -> Iterator[None]:
    """Call `beat` in a thread, the first time after `first` seconds, then after as many as it returns."""
    stop = threading.Event()

    def run() -> None:
        wait = first
        while not stop.wait(wait):
            with suppress(Exception):  # a line that cannot be shown must not end the next ones, nor the work
                wait = beat()

    thread = threading.Thread(target=run, name="medpfl-pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
