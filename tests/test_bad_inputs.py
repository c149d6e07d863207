"""A sample from `bad_inputs.py`; ``python tests/bad_inputs.py`` runs them all."""

from __future__ import annotations

from contextlib import closing

import pytest

from medpfl.isolation.parent import Worker
from tests.bad_inputs import all_failures
from tests.conftest import lend

EVERY = 12


@pytest.mark.slow
def test_bad_inputs_end_in_words_with_status_2_and_in_time(monkeypatch):
    numbers = []

    def sampled(number):
        numbers.append(number)
        return number % EVERY == 0

    with closing(Worker()) as own:  # the other tests' process must not know modules whose files are gone
        lend(own, monkeypatch)
        count, failures = all_failures(sampled)
    assert len(numbers) >= 300
    assert count >= 25
    assert failures == []
