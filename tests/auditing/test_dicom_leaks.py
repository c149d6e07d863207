"""Nothing of a patient leaks through us: a mark in every tag of DICOM files, searched in every byte written."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from medpfl.cli import main

MARK = "Zyxwvut"
_TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}
_DECIDES = {"PhotometricInterpretation", "PixelData", "VOILUTFunction"}


def marked_file(path: Path, number: int, broken: bool = False) -> None:
    """A real slice whose every text tag, standard and private, holds the mark."""
    header = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    for element in header.iterall():
        if element.VR in _TEXT and element.keyword not in _DECIDES:
            element.value = f"{MARK}{number}" if element.VR != "CS" else MARK.upper()
    header.PatientID, header.PatientName = f"{MARK}-{number // 2}", f"{MARK}^Doe"
    header.PatientComments = f"{MARK} comment"
    header.add_new((0x0009, 0x1099), "LT", f"{MARK} private")
    header.file_meta.SourceApplicationEntityTitle = MARK
    pixels = header.pixel_array + np.int16(number)
    header.PixelData = pixels.tobytes()[: -9999 if broken else None]
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path)


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    root = tmp_path / f"{MARK}-hospital" / f"{MARK}-set"
    lines = ["file,label,note"]
    for number in range(6):
        name = f"{MARK}-{number // 2}/{MARK}-{number}.dcm"
        marked_file(root / name, number)
        lines.append(f"{name},{'benign' if number % 2 else 'malignant'},{MARK} note")
    for name in ("broken", "cut"):
        marked_file(root / f"{MARK}-{name}.dcm", 9, broken=name == "broken")
        lines.append(f"{MARK}-{name}.dcm,benign,{MARK}")
    cut = root / f"{MARK}-cut.dcm"
    cut.write_bytes(cut.read_bytes()[:2500])
    (root / "index.csv").write_text("\n".join(lines))
    return root


def written(folder: Path) -> bytes:
    return b"".join(path.name.encode() + path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.filterwarnings("ignore")  # of marks that are too long for a tag
def test_no_tag_no_name_and_no_cell_of_a_csv_is_written(marked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs"
    log = tmp_path / "runs-log.txt"
    handler = logging.FileHandler(log)
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", logging.DEBUG)
    monkeypatch.setattr(root, "handlers", [*root.handlers, handler])
    model = ["--model", "LeNet('idlg')", "--attack", "iDLG(steps=3)", "--images", "4"]
    assert main(["audit", str(marked), *model, "--out", str(out / "one")]) == 0
    spec = f"Dicom('{marked}', labels='{marked}/index.csv', group='study', window=(40, 400))"
    assert main(["audit", spec, *model, "--out", str(out / "two")]) == 0
    assert main(["audit", f"Dicom('{marked}', labels='{marked}/none.csv')", *model, "--out", str(out / "bad")]) == 2
    handler.close()
    for run in ("one", "two"):
        assert (out / run / "report.html").is_file()
        assert MARK.lower().encode() not in written(out / run).lower()
    assert MARK.lower().encode() not in log.read_bytes().lower()
    key = json.loads((out / "medpfl-key.json").read_text())
    assert f"{MARK}-0" in key["patients"].values()  # and the key is the way back
    assert b"class 0" in written(out / "one")  # and classes are numbers
