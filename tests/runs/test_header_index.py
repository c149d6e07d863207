"""Headers of DICOM files are read once: kept beside the key, for unchanged files only, and never trusted blindly."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from medpfl.data import Dicom
from medpfl.data.reading import dicom_headers
from medpfl.runs import header_index
from medpfl.runs.header_index import INDEX_FILE, keep_index, recall_index
from tests.auditing.audit_cases import plain, tiny
from tests.data.made_dicom import dicom

MARK = "Zyxwvut"


@pytest.fixture(autouse=True)
def read(monkeypatch):
    """The names of the files whose headers are read; nothing is known at first, and four files are many."""
    names: list[str] = []

    def counted(path, own=dicom_headers.read_header, **options):
        names.append(Path(path).name)
        return own(path, **options)

    monkeypatch.setattr(dicom_headers, "read_header", counted)
    monkeypatch.setattr(dicom_headers, "_known", {})
    monkeypatch.setattr(header_index, "_LEAST", 4)
    return names


def file(path: Path, patient: str, age: float = 60.0) -> Path:
    pixels = np.random.default_rng(len(path.name) + ord(patient[-1])).integers(0, 256, (16, 16), np.uint8)
    dicom(path, pixels, PatientID=patient, SeriesInstanceUID="1.3", StudyInstanceUID="1.2")
    changed = path.stat().st_mtime - age
    os.utime(path, (changed, changed))
    return path


def files(root: Path) -> Path:
    for i in range(4):
        file(root / f"{'benign' if i % 2 else 'malignant'}" / f"{i}{'.dcm' if i else ''}", f"{MARK}{i // 2}")
    return root


def forget() -> None:
    dicom_headers._known.clear()


def test_headers_of_unchanged_files_are_read_once(tmp_path, read):
    source = Dicom(files(tmp_path), size=16)
    one, first = source.load(), sorted(read)
    read.clear()
    two = source.load()
    assert len(first) >= 4
    assert read == []
    assert (one.names, one.patients, one.classes) == (two.names, two.patients, two.classes)
    assert one.images.equal(two.images)
    assert len(Dicom(tmp_path / "benign", size=16).load()) == 2
    assert read == [], "a folder inside has the same files"


def test_a_changed_file_is_read_again_and_a_new_one_too(tmp_path, read):
    source = Dicom(files(tmp_path), size=16)
    source.load()
    read.clear()
    file(tmp_path / "benign" / "1.dcm", "other", age=30.0)
    file(tmp_path / "benign" / "9.dcm", "new")
    data = source.load()
    assert set(read) == {"1.dcm", "9.dcm"}
    assert dict(zip(data.names, data.patients, strict=True))["benign/1.dcm"] == "other"
    (tmp_path / "benign" / "9.dcm").unlink()
    assert len(source.load()) == 4
    assert not any("9.dcm" in name for name in dicom_headers.kept_headers(tmp_path))


def test_a_file_that_has_just_changed_is_not_kept(tmp_path, read):
    """Its next change may leave size and time as they are."""
    file(tmp_path / "a.dcm", "a", age=0.0)
    Dicom(tmp_path, size=16).load()
    assert dicom_headers.kept_headers(tmp_path) == {}


def test_an_audit_keeps_the_index_beside_the_key_and_the_next_one_uses_it(tmp_path, read):
    root, out = files(tmp_path / "data"), tmp_path / "runs" / "a"
    rows = plain(tiny(root, out=out, numbers_only=True).rows)
    index = out.parent / INDEX_FILE
    assert stat.S_IMODE(index.stat().st_mode) == 0o600
    assert MARK in index.read_text()
    assert not any(MARK.encode() in p.read_bytes() for p in out.rglob("*") if p.is_file())
    forget()
    read.clear()
    assert plain(tiny(root, out=out.with_name("b"), numbers_only=True).rows) == rows
    assert read == []
    before = index.read_bytes()
    os.utime(root / "benign" / "1.dcm", (1, 1))
    (root / "benign" / "3.dcm").unlink()
    file(root / "benign" / "5.dcm", f"{MARK}1")
    forget()
    tiny(root, out=out.with_name("c"), numbers_only=True, images=3)
    assert set(read) == {"1.dcm", "5.dcm"}
    assert "3.dcm" in before.decode()
    assert "3.dcm" not in index.read_text(), "a file that is gone is forgotten"


def test_no_index_for_few_files_or_without_a_run_directory(tmp_path, monkeypatch):
    root = files(tmp_path / "data")
    Dicom(root, size=16).load()
    keep_index(None, str(root))
    monkeypatch.setattr(header_index, "_LEAST", 5)
    keep_index(tmp_path / "runs" / "a", str(root))
    assert not list(tmp_path.rglob(INDEX_FILE))
    recall_index(None)
    recall_index(tmp_path / "runs" / "a")


def test_the_index_holds_the_files_of_several_folders(tmp_path):
    one, two, out = files(tmp_path / "one"), files(tmp_path / "two"), tmp_path / "run"
    for root in (one, two, one):
        forget()
        Dicom(root, size=16).load()
        keep_index(out, str(root))
    kept = json.loads((tmp_path / INDEX_FILE).read_text())["files"]
    assert len(kept) == 8
    forget()
    recall_index(out)
    assert dicom_headers.kept_headers(one).keys() | dicom_headers.kept_headers(two).keys() == kept.keys()


GOOD = {"format": 1, "files": {"/x": [1, 2, 3, "a", None, None]}}
UNTRUSTED = {
    "no JSON": b"\x80\x04}.",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "another version": json.dumps(GOOD | {"format": 2}).encode(),
    "no files": json.dumps(GOOD | {"files": [1]}).encode(),
    **{
        f"entry {i}": json.dumps(GOOD | {"files": {**GOOD["files"], "/y": entry}}).encode()
        for i, entry in enumerate(
            [
                None,
                [1, 2, 3, "a", None],
                [1, 2, 0, "a", None, None],
                [1, 2, 10**9, "a", None, None],
                [1.5, 2, 3, "a", None, None],
                [True, 2, 3, "a", None, None],
                [1, 2, 3, 4, None, None],
                [1, 2, 3, " ", None, None],
            ]
        )
    },
}


@pytest.mark.parametrize("name", [*UNTRUSTED, "open to others", "a link", "a folder"])
def test_an_index_that_cannot_be_trusted_is_ignored_with_a_note(name, tmp_path, capsys):
    path = tmp_path / INDEX_FILE
    if name == "a folder":
        path.mkdir()
    else:
        path.write_bytes(UNTRUSTED.get(name, json.dumps(GOOD).encode()))
        path.chmod(0o644 if name == "open to others" else 0o600)
    if name == "a link":
        path.symlink_to(path.rename(tmp_path / "elsewhere"))
    recall_index(tmp_path / "run")
    assert "ignored the index of DICOM headers" in capsys.readouterr().err
    assert dicom_headers._known == {}


def test_a_good_index_is_taken_without_a_note(tmp_path, capsys):
    (tmp_path / INDEX_FILE).write_text(json.dumps(GOOD))
    (tmp_path / INDEX_FILE).chmod(0o600)
    recall_index(tmp_path / "run")
    assert capsys.readouterr().err == ""
    assert len(dicom_headers._known) == 1


def test_an_untrusted_index_is_replaced(tmp_path):
    root = files(tmp_path / "data")
    (tmp_path / INDEX_FILE).write_text("damaged")
    Dicom(root, size=16).load()
    keep_index(tmp_path / "run", str(root))
    assert len(json.loads((tmp_path / INDEX_FILE).read_text())["files"]) == 4
