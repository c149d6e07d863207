"""Data names and paths appear on a terminal, but in a log only on request."""

from __future__ import annotations

import logging
import pickle
import sys
import warnings

import pytest

from medpfl.core.errors import HIDDEN, InputError, private
from medpfl.core.messages import about, log, say, speaking, told


class Terminal:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def no_data_of_other_tests(monkeypatch):
    monkeypatch.setattr("medpfl.core.messages._places", {})


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "ward-7"
    (root / "Doe Jane").mkdir(parents=True)
    (root / "Doe Jane" / "scan-17.png").write_text("")
    (root / "index.csv").write_text("file,patient_id\nDoe Jane/scan-17.png,MRN-00812\n")
    return root


def test_what_is_private_is_marked_through_errors_that_quote_errors():
    inner = InputError(f"cannot read {private('doe.png', 'a file')}: cut off")
    outer = InputError(f"the images: {inner}")
    assert str(outer) == "the images: cannot read doe.png: cut off"
    assert told(outer, shown=False).startswith("the images: cannot read a file: cut off")
    assert told(outer, shown=True) == str(outer)
    assert f"{pickle.loads(pickle.dumps(outer))}" == f"{outer}"


def test_a_terminal_gets_names_and_a_log_does_not(capsys):
    terminal = Terminal()
    say(f"read {private('doe.png', 'a file')}", terminal)
    say(f"read {private('doe.png', 'a file')}")
    assert terminal.text == "read doe.png\n"
    assert capsys.readouterr().err == "read a file\n"
    with speaking(True, []):
        say(f"read {private('doe.png', 'a file')}")
    assert capsys.readouterr().err == "read doe.png\n"


@pytest.mark.parametrize(
    "message",
    [
        "'{root}/Doe Jane/scan-17.png' is cut off",
        "no image in the class folders: Doe Jane",
        "scan-17.png: not an image",
        "the file scan-17 gives two labels to MRN-00812",
        "cannot open {root}/Doe Jane/scan-17.png",
    ],
)
def test_messages_that_mark_nothing_are_kept_free_of_what_lies_in_the_data(message, data):
    with speaking(False, []):
        about(data)
        shown = told(message.format(root=data), shown=False)
    for mark in ("ward-7", "Doe", "Jane", "scan-17", "MRN"):
        assert mark not in shown
    assert "--show-paths" in shown
    assert told(message.format(root=data), shown=True) == message.format(root=data)


def test_paths_that_nobody_typed_are_hidden_and_an_option_may_be_repeated(tmp_path):
    out = tmp_path / "runs" / "a"
    with speaking(False, ["audit", "--out", str(out), f"--model={tmp_path}/net.py:make"]):
        assert told(f"'{out}' is in use: name another --out", False) == f"'{out}' is in use: name another --out"
        assert told(f"'{tmp_path}/net.py:make' failed", False) == f"'{tmp_path}/net.py:make' failed"
        assert "secret" not in told("No such file: '/home/x/secret dir/a.pt'", False)
        assert "secret" not in told("cannot open /home/x/secret/a.pt now", False)
        assert told("1/2 of the images, and/or masks", False) == "1/2 of the images, and/or masks"


@pytest.mark.filterwarnings("default")
def test_warnings_and_log_records_of_libraries_are_messages(data, capsys):
    shown = warnings.showwarning
    with warnings.catch_warnings(), speaking(False, []):
        warnings.simplefilter("always")
        about(data)
        warnings.warn(f"odd header in {data}/Doe Jane/scan-17.png", UserWarning, stacklevel=1)
        logger = logging.Logger("nibabel.elsewhere")
        logger.warning("odd header in scan-17.png")
    said = capsys.readouterr().err
    assert said.count("odd header in") == 2
    assert "Doe" not in said
    assert "scan-17" not in said
    assert __file__ not in said
    assert warnings.showwarning is shown
    assert isinstance(logging.lastResort, logging.Handler)
    assert sys.stderr is not None


def test_messages_go_to_the_log_of_the_package_without_names(caplog, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("medpfl.core.messages.may_show", lambda stream: True)
    (tmp_path / "doe.png").touch()
    about(tmp_path)
    say("skipped doe.png")
    assert caplog.records == [], "nobody asked for them"
    with caplog.at_level(logging.INFO, logger="medpfl"):
        say("skipped doe.png")
        log("round 1 done")
    assert [(record.name, record.levelname) for record in caplog.records] == [("medpfl", "INFO")] * 2
    assert caplog.messages == [
        f"skipped {HIDDEN}\n(names and paths are hidden; --show-paths shows them)",
        "round 1 done",
    ]
    assert capsys.readouterr().err == "skipped doe.png\n" * 2, "and log() prints nothing"
