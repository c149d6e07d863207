"""Finding a user's part, however its file is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from medpfl import InputError
from medpfl.core.user_code.loading import at_home, find, is_call, is_place, parted


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("net.py:make", ("net.py", "make")),
        ("net (1).py:make", ("net (1).py", "make")),
        ("a/net (1).py:make(width=8)['logits']", ("a/net (1).py", "make(width=8)['logits']")),
        ("net(1).py:make()", ("net(1).py", "make()")),
        ("my models (2)/net.py:make[0]", ("my models (2)/net.py", "make[0]")),
        ("net [old].py:Own(a=1) | TopK(keep=0.5)", ("net [old].py", "Own(a=1) | TopK(keep=0.5)")),
        ("net.py:make(path='other.py:make')", ("net.py", "make(path='other.py:make')")),
        ("a.py:b/net.py:make", ("a.py:b/net.py", "make")),
        ("net (1).py:", ("net (1).py", "")),
        ("package.module:Class(arg='x:y')", ("package.module", "Class(arg='x:y')")),
        ("net.py:not-a-name", ("net.py", "not-a-name")),
        ("LeNet('dlg')", None),
        ("ResNet(weights='a.py:b(c)')", None),
        ("ResNet(weights='C:/w.pt')", None),
        ("a (1)/round-2", None),
    ],
)
def test_a_place_ends_at_the_colon_before_the_name(text, parts):
    assert parted(text) == parts
    assert is_place(text) is (parts is not None)


@pytest.mark.parametrize(
    ("text", "called"),
    [
        ("LeNet", True), ("LeNet('dlg')", True), ("A(1) | B(2)", True), ("LeNet('dlg'", True),
        ("runs/a (1)", False), ("net (1)/round-2", False), ("my runs/x", False),
    ],
)  # fmt: skip
def test_what_is_meant_as_a_spec(text, called):
    assert is_call(text) is called


@pytest.mark.parametrize("name", ["net (1).py", "net.v2 [old].py", "é (2).py"])
def test_a_file_is_found_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_text("def make():\n    return 3\n")
    place, call = parted(f"{tmp_path / name}:make")
    assert find(place, call, "model")() == 3


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(InputError, match=r"there is no model file '.*net \(2\)\.py'"):
        find(str(tmp_path / "net (2).py"), "make", "model")


def test_a_missing_file_is_said_with_the_folder_in_which_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        find("net.py", "make", "model")
    assert str(caught.value) == f"there is no model file 'net.py' (the working directory is '{tmp_path}')"


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "net (1).py").write_text("def make():\n    return 4\n")
    assert find("~/net (1).py", "make", "model")() == 4
    assert at_home("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


@pytest.mark.parametrize(
    "last", ["raise SystemExit(0)", "import sys; sys.exit()", "raise GeneratorExit", "raise KeyboardInterrupt"]
)
def test_an_import_that_ends_the_program(tmp_path, monkeypatch, last):
    (tmp_path / "ending_file.py").write_text(f"{last}\ndef make():\n    return 3\n")
    with pytest.raises(InputError, match=r"importing '.*ending_file\.py' failed: it (ended|raised)"):
        find(str(tmp_path / "ending_file.py"), "make", "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"importing 'ending_file' failed .*: it (ended|raised)"):
        find("ending_file", "make", "model")


def test_a_module_that_ends_the_program_when_asked_for_a_name(tmp_path):
    (tmp_path / "asked.py").write_text("def __getattr__(name):\n    raise SystemExit(0)\n")
    with pytest.raises(InputError, match="does not give 'make': it ended the program"):
        find(str(tmp_path / "asked.py"), "make", "model")
    sys.modules.pop("medpfl_user_asked", None)
