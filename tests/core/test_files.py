"""A file is the old one or the new one, and private from its first byte."""

import os
import stat

import pytest

from medpfl.core import files


@pytest.fixture(autouse=True)
def _open_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_writes_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "rows.json"
    assert files.write(path, b"one") == path
    first = path.stat().st_ino
    files.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_ino != first  # replaced, not written over: a reader keeps what it opened
    assert list(tmp_path.iterdir()) == [path]


def test_modes(tmp_path):
    assert mode(files.write(tmp_path / "shared", b"")) == 0o644
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o644)
    assert mode(files.write(path, b"new", files.PRIVATE)) == 0o600


def test_private_from_the_first_byte_on(tmp_path, monkeypatch):
    seen = []

    def sync(descriptor):
        (part,) = tmp_path.iterdir()
        seen.append((mode(part), part.name[0], part.read_bytes()))

    monkeypatch.setattr(files.os, "fsync", sync)
    files.write(tmp_path / "key", b"secret", files.PRIVATE)
    assert seen == [(0o600, ".", b"secret")]


def test_a_failure_keeps_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = files.write(tmp_path / "rows.json", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.write(tmp_path / "none" / "x", b"")
