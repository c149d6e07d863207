"""A line that moves while a command works: in a log, on a terminal, and in a notebook."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import types
from contextlib import nullcontext

import pytest

from medpfl.core import progress
from medpfl.core.errors import private
from medpfl.core.experiments.groups import Run
from medpfl.runs import progress_bar, pulse
from medpfl.runs.estimate import Estimate, Piece
from medpfl.runs.jobs import JobKey
from medpfl.runs.progress_bar import rounds_of, watching
from medpfl.runs.pulse import Pulse, pulsing

JOB = JobKey("", 0, "NoDefense()", "iDLG()", 0)


class Clock:
    """A clock that a test sets, for all modules that read one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for place in ("pulse", "progress_bar", "estimate"):
            monkeypatch.setattr(f"medpfl.runs.{place}.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def head(line: str) -> str:
    """Return a line without the time of day at its end."""
    return line.rpartition(", until")[0]


def test_a_line_says_when_how_much_what_and_how_long(clock, monkeypatch):
    with pulsing(True) as shown, watching(10, 4, True) as jobs:
        clock.now = 90.0
        jobs.begin(JOB, 4)
        clock.now = 100.0
        jobs.report(JOB, 0.5, lambda: "step 5 of 10, objective 0.1")
        line = shown.line()
        jobs.end(JOB)
        assert head(line) == (
            "0:01:40  6 of 10 images  iDLG() x NoDefense()  step 5 of 10, objective 0.1  about 3 min 20 s left"
        )
        assert shown.done == 8
    assert shown.line() == "0:01:40"


def test_what_an_attack_says_is_printable_and_short(clock):
    with pulsing(True) as shown, watching(10, 0, True) as jobs:
        jobs.begin(JOB, 4)
        jobs.report(JOB, 0.1, lambda: "a\x1b[2J\nb")
        assert shown.said == ""
        clock.now = 1.0
        jobs.report(JOB, 0.2, lambda: "x" * 1000)
        assert shown.said == "x" * 100
        clock.now += progress_bar._APART / 2
        jobs.report(JOB, 0.3, lambda: pytest.fail("asked too often: it may wait for an accelerator"))


def test_nothing_is_shown_or_asked_if_progress_is_off(capsys):
    with watching(10, 4, False) as jobs:
        jobs.begin(JOB, 3)
        jobs.report(JOB, 0.5, lambda: pytest.fail("nobody asked"))
        jobs.end(JOB)
    assert list(rounds_of(3, 5, False)) == [3, 4, 5]
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_job_counts_as_undone():
    with pulsing(True) as shown, watching(10, 4, True) as jobs:
        jobs.begin(JOB, 3)
        jobs.end(JOB)
        jobs.begin(JOB, 3)
        assert shown.done == 7


def test_several_jobs_are_counted_together(clock):
    other = JOB._replace(stack=1)
    with pulsing(True) as shown, watching(10, 0, True) as jobs:
        for job in (JOB, other):
            jobs.begin(job, 4)
        for job in (JOB, other):
            clock.now += 1.0
            jobs.report(job, 0.5, lambda: "step 5 of 10")
        assert (shown.what, shown.done, shown.said) == ("2 jobs at once", 4, "")
        jobs.end(JOB)
        assert (shown.what, shown.done) == ("iDLG() x NoDefense()", 6)


def test_rounds_are_counted_with_their_clients(clock):
    lines = []
    with pulsing(True) as shown:
        for number in rounds_of(3, 5, True):
            clock.now += 10.0
            progress.report(0.5, lambda: "client 2 of 4")
            lines.append(head(shown.line()) or shown.line())
            assert number in (3, 4, 5)
    assert lines[0].startswith("0:00:10  2 of 5 rounds  round 3  client 2 of 4  about 50 s left")
    assert lines[2].startswith("0:00:30  4 of 5 rounds  round 5  client 2 of 4  about")


def test_inside_another_pulse_the_same_line_is_used():
    with pulsing(True) as outer, pulsing(True) as inner:
        assert inner is outer
        with pulsing(False) as silent:
            assert silent is not outer
    with pulsing(True) as later:
        assert later is not outer


def test_time_of_work_to_come_is_added():
    shown = Pulse(left=lambda: 30.0)
    with progress.later(lambda: 60.0):
        assert "about 1 min 30 s left, until " in shown.line()
    with progress.later(lambda: None):
        assert "left" not in shown.line()


@pytest.mark.slow
def test_a_log_gets_a_line_again_and_again_fewer_later(capsys, monkeypatch):
    monkeypatch.setattr(pulse, "EVERY", 0.05)
    monkeypatch.setattr(pulse, "RARE", 60.0)
    monkeypatch.setattr(pulse, "LONG", 0.2)
    waits = []
    enough = threading.Event()
    beating = pulse._beating

    def beats(beat, first):
        def counted():
            waits.append(beat())
            if waits[-1] == 60.0:
                enough.set()
            return waits[-1]

        return beating(counted, first)

    monkeypatch.setattr(pulse, "_beating", beats)
    with pulsing(True), progress.phase("reading the images"):
        assert enough.wait(10)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == len(waits) >= 2
    assert set(lines) == {"0:00:00  reading the images"}
    assert waits == [0.05] * (len(waits) - 1) + [60.0]


TERMINAL = """
import sys, time
from medpfl.core import progress
from medpfl.core.messages import say
from medpfl.runs.pulse import pulsing
with pulsing(True) as shown, progress.phase("reading"), shown.counting(10, 5, "images"):
    time.sleep(0.6)
    say("note: a message between")
    print("a result")
    time.sleep(0.4)
print("the end")
"""


def on_terminal(code: str, **env: str) -> str:
    """Return what a program shows on a terminal."""
    own, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", **env}
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment) as program:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(own, 4096):
                shown += chunk
        except OSError:  # the other end is closed
            pass
    assert program.returncode == 0, shown
    return shown.decode()


@pytest.mark.slow
def test_a_terminal_has_one_line_that_changes_and_goes_away():
    shown = on_terminal(TERMINAL)
    assert "━━━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌  0:00:00  5 of 10 images  reading" in shown
    assert shown.count("5 of 10 images") >= 3, "it is drawn again"
    assert "note: a message between\r\n" in shown
    assert "a result\r\n" in shown
    assert shown.endswith("the end\r\n")
    assert shown.rpartition("5 of 10")[2].count("\x1b[2K") >= 1, "and erased"


@pytest.mark.slow
def test_no_color_is_obeyed_on_a_terminal():
    assert "\x1b[3" not in on_terminal(TERMINAL, NO_COLOR="1")


@pytest.mark.slow
def test_a_terminal_that_cannot_move_gets_lines():
    shown = on_terminal(TERMINAL.replace("0.6", "2.0"), TERM="dumb")
    assert "0:00:01  5 of 10 images  reading\r\n" in shown
    assert "\x1b" not in shown


def test_a_log_whose_reader_is_gone_does_not_stop_the_work(monkeypatch):
    class Closed:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

        flush = isatty

    beats = []
    monkeypatch.setattr(pulse, "EVERY", 1.0)
    monkeypatch.setattr(pulse, "_beating", lambda beat, first: beats.append(beat) or nullcontext())
    monkeypatch.setattr(sys, "stderr", Closed())
    with pulsing(True):
        assert beats[0]() == 1.0


def test_a_notebook_has_one_line_that_changes(monkeypatch):
    drawn = []

    class Handle:
        def update(self, content):
            drawn.append(repr(content))

    class Pretty:
        def __init__(self, data):
            self.data = data

    def display(content, display_id):
        assert display_id
        drawn.append(repr(content))
        return Handle()

    module = types.ModuleType("IPython.display")
    module.__dict__.update(Pretty=Pretty, display=display)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(pulse, "EVERY", 1.0)
    with progress.phase("reading"), pulsing(Run().visible):
        pass
    assert (drawn[0], drawn[-1]) == ("0:00:00  reading", "done in 0 s")


@pytest.mark.parametrize("shows", [True, False])
def test_a_line_shows_no_marks_of_private_words_and_hides_them_where_it_must(monkeypatch, shows):
    text = f"audit of {private('doe_john', 'a site')}"

    class Stream:
        def isatty(self):
            return shows

    shown = pulse._fit_for(Stream())
    with progress.phase(text), pulsing(True) as line:
        told = line.line(shown)
        assert told == ("0:00:00  audit of doe_john" if shows else "0:00:00  audit of a site")
        assert line.line() == "0:00:00  audit of a site", "a line that nobody fitted hides them"
    with progress.phase(f"reading {private('doe')}"), pulsing(True) as line:
        assert "\n" not in line.line(shown)


def test_progress_is_shown_by_default_in_an_interactive_session_only(monkeypatch):
    assert not Run().visible
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert Run().visible
    assert not Run(progress=False).visible


# --- estimates ------------------------------------------------------------------------------------------------


def pieces(seconds: dict[str, float]) -> dict[str, Piece]:
    return {name: Piece((name[:2], name[0], ""), guess) for name, guess in seconds.items()}


def run_job(estimate: Estimate, clock: Clock, name: str, seconds: float) -> None:
    estimate.begin(name)
    clock.now += seconds
    estimate.end(name)


def test_an_estimate_begins_with_the_guesses_and_learns_from_jobs_of_the_same_kind(clock):
    estimate = Estimate(pieces({"a1": 10.0, "a2": 10.0, "a2x": 20.0, "b1": 10.0}))
    assert estimate.left() == 50.0
    run_job(estimate, clock, "a2", 5.0)  # half of the guess
    assert estimate.left() == 5.0 + 10.0 + 5.0, "for the same kind, and without better knowledge for others"
    run_job(estimate, clock, "b1", 30.0)
    assert estimate.left() == pytest.approx(5.0 + 10.0), "the kind's own experience comes first"


def test_without_trusted_guesses_nothing_is_known_until_a_job_has_run(clock):
    estimate = Estimate(pieces({"a1": 1.0, "a2": 3.0}), trusted=False)
    assert estimate.left() is None
    run_job(estimate, clock, "a1", 10.0)
    assert estimate.left() == 30.0


def test_a_job_that_lasts_longer_than_expected_is_judged_by_its_own_pace(clock):
    estimate = Estimate(pieces({"a1": 10.0}))
    estimate.begin("a1")
    clock.now = 4.0
    estimate.report("a1", 0.1)
    assert estimate.left() == 6.0, "it may end early, as expected"
    clock.now = 30.0
    estimate.report("a1", 0.5)
    assert estimate.left() == 15.0, "half of what its steps would take"


def test_a_job_that_is_faster_than_expected_is_judged_by_its_steps(clock):
    estimate = Estimate(pieces({"a1": 100.0}))
    estimate.begin("a1")
    clock.now = 5.0
    estimate.report("a1", 0.5)
    assert estimate.left() == 5.0


def test_a_job_that_nothing_tells_of_is_known_by_the_first_one_like_it(clock):
    like = [Piece((f"S x {name}", "S", ""), 4.0, alone=True) for name in "abc"]
    other = Piece(("D", ""), 10.0)
    jobs = Estimate({"d": other, **dict(zip("abc", like, strict=True))})
    assert jobs.left() is None
    jobs.begin("d")
    clock.now = 10.0
    jobs.end("d")
    assert jobs.left() is None, "another attack does not tell"
    jobs.begin("a")
    clock.now = 30.0
    jobs.report("a", 0.25)
    assert jobs.left() == 60 + 2 * 80, "its own pace, while it runs"
    clock.now = 90.0
    jobs.end("a")
    assert jobs.left() == 2 * 80
    assert jobs.expected(like[1]) == 80


def test_workers_share_the_time_that_is_left(clock):
    estimate = Estimate(pieces({"a1": 10.0, "a2": 10.0, "a3": 10.0}), workers=2)
    assert estimate.left() == 15.0
    for name in ("a1", "a2"):
        estimate.begin(name)
    clock.now = 4.0
    assert estimate.left() == (6.0 + 6.0 + 10.0) / 2
    estimate.end("a1")
    estimate.begin("a3")
    clock.now = 5.0
    estimate.end("a2")
    assert estimate.left() == pytest.approx(3.5), "one job cannot be shared"
