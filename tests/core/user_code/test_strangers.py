"""Any exception in foreign code becomes an error that names the part; a person's Ctrl-C does not."""

from __future__ import annotations

import re
import signal
import sys
import threading
from contextlib import suppress

import pytest

from medpfl import InputError
from medpfl.core.user_code.strangers import explained

LINE = r" \(test_strangers\.py, line \d+\)$"


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("shapes differ\nat length"), "^the attack: shapes differ"),
        (ValueError(), "^the attack: ValueError"),
        (SystemExit(0), r"^the attack: it ended the program \(SystemExit: 0\)"),
        (SystemExit(), r"^the attack: it ended the program \(SystemExit"),
        (GeneratorExit(), "^the attack: it raised GeneratorExit"),
        (KeyboardInterrupt("mine"), "^the attack: it raised KeyboardInterrupt: mine"),
        (BaseException("odd"), "^the attack: it raised BaseException: odd"),
        (StopIteration(3), "^the attack: 3"),
        (Mute(), "^the attack: Mute"),
        (MemoryError(), "^out of memory: lower --memory"),
        (RuntimeError("CUDA out of memory. Tried"), "^out of memory: lower --memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_everything_becomes_an_error_that_names_the_part(error, message):
    with pytest.raises(InputError, match=message) as caught, explained("the attack"):
        raise error
    assert re.search(LINE, str(caught.value)) or "memory" in message


def test_sys_exit_and_the_name_of_the_class():
    with pytest.raises(InputError, match=r"ended the program"), explained("it"):
        sys.exit(0)
    with pytest.raises(InputError, match="^it: KeyError: 'x'" + LINE), explained("it", named=True):
        raise KeyError("x")


def test_an_input_error_passes_unchanged():
    with pytest.raises(InputError, match=r"^mine$"), explained("the attack"):
        raise InputError("mine")


def test_ctrl_c_stays_what_it_is(ctrl_c):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), explained("the outer"), explained("the inner"):
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_that_a_stranger_turns_into_success_is_an_interrupt(ctrl_c):
    def attack():
        try:
            ctrl_c()
        except KeyboardInterrupt:
            sys.exit(0)

    with pytest.raises(KeyboardInterrupt), explained("the attack"):
        attack()


def test_in_another_thread_and_without_a_handler():
    """No Ctrl-C arrives there, so every KeyboardInterrupt comes from the foreign code."""
    found: list[BaseException] = []

    def work():
        try:
            with explained("the attack"):
                raise KeyboardInterrupt
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with suppress(InputError), explained("the attack"):
            raise KeyboardInterrupt
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert [type(error) for error in found] == [InputError]
