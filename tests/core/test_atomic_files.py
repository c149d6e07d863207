"""A file is either the old one or the new one, and private from its first byte."""

import os
import stat
import subprocess
import sys

import pytest

from medpfl.core import atomic_files as files


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


KILLED = """
import os, signal, sys
from pathlib import Path
from medpfl.core import atomic_files as files
files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
files.write(Path(sys.argv[1]), b"half")
"""


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run.json")], check=False, timeout=120)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".run.json.")
    own = [tmp_path / name for name in (".run.json", "run.json.0a1b2c3d", ".bashrc.0a1b2c3d", ".lock", ".run.json.xyz")]
    for path in own:
        path.write_text("")
    files.remove_leftovers(tmp_path, "other.json")
    assert left.exists()
    files.remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(own)


def test_what_a_live_process_writes_is_no_leftover(tmp_path, monkeypatch):
    kept = []

    def sync(_):
        files.remove_leftovers(tmp_path)
        kept.extend(path.name for path in tmp_path.iterdir())

    monkeypatch.setattr(files.os, "fsync", sync)
    assert files.write(tmp_path / "run.json", b"whole").read_bytes() == b"whole"
    assert len(kept) == 1
    files.remove_leftovers(tmp_path / "nowhere")
