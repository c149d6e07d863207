"""Long work reports its progress to its listeners."""

import pytest

from medpfl.core.progress import during, later, listening, part, phase, report, seconds_later


def test_heard_within_only_and_by_the_innermost():
    outer, inner = [], []
    report(0.1)
    with listening(lambda share, said: outer.append((share, said()))):
        report(0.2, lambda: "step 2")
        with listening(lambda share, _: inner.append(share)):
            report(0.3)
        with part(0.5, 1.0):
            report(0.5, lambda: "half of the second half")
    report(0.5)
    assert (outer, inner) == ([(0.2, "step 2"), (0.75, "half of the second half")], [0.3])


def test_words_are_made_only_if_somebody_listens():
    report(0.5, lambda: pytest.fail("nobody asked"))


def listen_and_fail(listener):
    with listening(listener), phase("failing"):
        raise KeyError("x")


def test_no_longer_heard_after_an_error():
    heard = []
    with pytest.raises(KeyError):
        listen_and_fail(lambda *told: heard.append(told))
    report(1.0)
    assert (heard, during()) == ([], "")


def test_phases_are_named_from_the_outside_to_the_inside():
    with phase("setting 2 of 3"):
        with phase("reading"):
            assert during() == "setting 2 of 3: reading"
        assert during() == "setting 2 of 3"


def test_work_to_come_is_added_up_unless_some_is_unknown():
    assert seconds_later() == 0
    with later(lambda: 60.0):
        with later(lambda: 5.0):
            assert seconds_later() == 65.0
        with later(lambda: None):
            assert seconds_later() is None
    assert seconds_later() == 0
