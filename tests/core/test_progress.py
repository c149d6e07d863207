"""Long work reports its progress to its listeners."""

import pytest

from medpfl.core.progress import listening, report


def test_heard_within_only_and_by_the_innermost():
    outer, inner = [], []
    report(0.1)
    with listening(outer.append):
        report(0.2)
        with listening(inner.append):
            report(0.3)
        report(0.4)
    report(0.5)
    assert (outer, inner) == ([0.2, 0.4], [0.3])


def listen_and_fail(listener):
    with listening(listener):
        raise KeyError("x")


def test_no_longer_heard_after_an_error():
    heard = []
    with pytest.raises(KeyError):
        listen_and_fail(heard.append)
    report(1.0)
    assert heard == []
