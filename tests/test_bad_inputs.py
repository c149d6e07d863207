"""A sample from `bad_inputs.py`; ``python tests/bad_inputs.py`` runs them all."""

from __future__ import annotations

import pytest

from tests.bad_inputs import all_failures

EVERY = 12


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_bad_inputs_end_in_words_with_status_2_and_in_time():
    numbers = []

    def sampled(number):
        numbers.append(number)
        return number % EVERY == 0

    count, failures = all_failures(sampled)
    assert len(numbers) >= 300
    assert count >= 25
    assert failures == []
