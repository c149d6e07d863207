"""The benchmark of silences measures what it says."""

from __future__ import annotations

import sys

import pytest

from benchmarks import silence

pytestmark = pytest.mark.extra

TALKS = """
import sys, time
time.sleep(0.5)
print("first", file=sys.stderr, flush=True)
time.sleep(1.0)
print("second", flush=True)
time.sleep(0.2)
sys.exit(3)
"""


def test_silences_before_and_between_lines_are_measured(tmp_path):
    found = silence.measured([sys.executable, "-c", TALKS], tmp_path)
    assert 0.5 <= found.first < 1.0
    assert 1.0 <= found.longest < 1.4
    assert found.seconds >= 1.7
    assert found.status == 3


def test_the_told_time_is_compared_with_the_true_one(tmp_path):
    code = "import time; time.sleep(0.5); print('about 1 s left', flush=True); time.sleep(1)"
    found = silence.measured([sys.executable, "-c", code], tmp_path)
    assert found.told == pytest.approx((found.first + 1.0) / found.seconds, rel=0.01)
    assert silence.measured([sys.executable, "-c", "print('no time')"], tmp_path).told is None
    assert silence.seconds_left(b"about 2 h 5 min left, until 12:00") == 7500


def test_a_command_without_output_is_silent_to_its_end(tmp_path):
    found = silence.measured([sys.executable, "-c", "import time; time.sleep(0.3)"], tmp_path)
    assert found.first == found.seconds >= 0.3


def test_a_row_for_each_chosen_command():
    head, _, *rows = silence.lines(silence.parsed(["--commands", "help", "list"]))
    assert head.startswith("| command | first line")
    assert [row.split(" | ")[0] for row in rows] == ["| help", "| list"]
    assert all(row.endswith("|  | 0 |") for row in rows)


def test_every_command_of_the_command_line_is_measured():
    from medpfl.cli.parser import COMMANDS

    assert {words.split()[0] for words in silence.COMMANDS.values()} >= set(COMMANDS)
