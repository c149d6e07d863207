"""A sample from `bad_inputs.py`; ``python tests/bad_inputs.py`` runs them all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.bad_inputs import all_failures, cases

EVERY = 12


@pytest.mark.slow
def test_there_are_300_of_them():
    with tempfile.TemporaryDirectory() as name:
        names = [case.name for case in cases(Path(name))]
    assert len(names) >= 300


@pytest.mark.slow
def test_bad_inputs_end_in_words_with_status_2_and_in_time():
    count, failures = all_failures(lambda number: number % EVERY == 0)
    assert count >= 25
    assert failures == []
