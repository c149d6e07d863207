"""Messages in a reader's words: missing arguments, numbers with their nouns, and images without labels."""

from __future__ import annotations

import pytest

from medpfl import cli
from medpfl.cli.opening import opening
from medpfl.core.experiments.training import Training
from medpfl.data.reading.file_labels import UNLABELED
from medpfl.reporting.terminal import classes_line


@pytest.mark.parametrize("command", ["check-model", "compare", "forget", "inspect", "record", "report"])
def test_a_missing_argument_is_named_in_words(command, capsys):
    """No error shows the parser's own name of an argument, such as ``compare.runs``."""
    assert cli.main([command]) == 2
    said = capsys.readouterr().err
    assert "are required: the " in said
    assert f"{command}." not in said


def test_one_is_no_plural():
    assert "1 round of FedAvg" in opening(Training.of(rounds=1))


def test_images_without_labels_are_explained():
    assert "no labels, so all are of class 0" in classes_line(UNLABELED)
    assert classes_line(("a", "b")) == "class 0: a, class 1: b"
