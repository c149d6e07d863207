"""No patient data leaks through MedPFL: every DICOM tag holds a mark, and every written byte is searched for it."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from medpfl.cli import main
from medpfl.reproduction.experiments import Study, StudyPart, study
from tests.auditing.audit_cases import without_charts

KEY = "medpfl-key.json"
MARK = "Zyxwvut"
UID, BORN, HOUR = "1.2.826.0.98765432109", "17760704", "010203.765432"
"""In tags that hold no text."""
_TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}
_MADE = {"DA": BORN, "TM": HOUR, "DT": BORN + HOUR, "AS": "077Y"}
_DECIDES = {"PhotometricInterpretation", "PixelData", "VOILUTFunction", "SOPClassUID"}


def marked_file(path: Path, number: int, broken: bool = False) -> None:
    """Return a real slice with a mark in every text, date and UID tag, standard and private."""
    header = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    for element in header.iterall():
        if element.VR in _TEXT and element.keyword not in _DECIDES:
            element.value = f"{MARK}{number}" if element.VR != "CS" else MARK.upper()
        elif element.VR == "UI" and element.keyword not in _DECIDES:
            element.value = f"{UID}.{number // 2}"
        elif element.VR in _MADE:
            element.value = _MADE[element.VR]
    header.PatientID, header.PatientName = f"{MARK}-{number // 2}", f"{MARK}^Doe"
    header.PatientComments, header.PatientBirthDate = f"{MARK} comment", BORN
    header.add_new((0x0009, 0x1099), "LT", f"{MARK} private")
    header.file_meta.SourceApplicationEntityTitle = MARK
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    pixels = header.pixel_array + np.int16(number)
    header.PixelData = pixels.tobytes()[: -9999 if broken else None]
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path)


@pytest.fixture
def marked(tmp_path: Path, charts: None) -> Path:
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


@pytest.fixture
def log(tmp_path, monkeypatch) -> Iterator[Path]:
    """Return the whole log at the most verbose level."""
    path = tmp_path / "log.txt"
    handler, root = logging.FileHandler(path), logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)  # which forgets what loggers keep of earlier levels
    monkeypatch.setattr(root, "handlers", [*root.handlers, handler])
    logging.captureWarnings(True)
    yield path
    logging.captureWarnings(False)
    root.setLevel(level)
    handler.close()


def everything(folder: Path) -> bytes:
    """Return all names and bytes, unpacked, except the key's, which leads back to the patients."""
    found = []
    for path in folder.rglob("*"):
        found.append(path.relative_to(folder).as_posix().encode())
        if path.is_file() and path.name != KEY:
            content = path.read_bytes()
            found.append(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
    return b"\n".join(found)


def check(*places: Path) -> None:
    """Check that the written files contain no mark."""
    content = b"\n".join(everything(place) if place.is_dir() else place.read_bytes() for place in places).lower()
    assert len(content) > 10_000
    for mark in (MARK, UID, BORN, HOUR):
        assert mark.lower().encode() not in content, mark


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of marks that are too long for a tag
def test_no_tag_no_name_and_no_cell_of_a_csv_is_written(marked, log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs"
    model = ["--model", "LeNet('idlg')", "--attack", "iDLG(steps=3)", "--images", "4"]
    assert main(["audit", str(marked), *model, "--out", str(out / "one")]) == 0
    spec = f"Dicom('{marked}', labels='{marked}/index.csv', group='study', window=(40, 400))"
    assert main(["audit", spec, *model, "--out", str(out / "two")]) == 0
    assert main(["audit", f"Dicom('{marked}', labels='{marked}/none.csv')", *model, "--out", str(out / "bad")]) == 2
    for run in ("one", "two"):
        assert main(["report", str(out / run)]) == 0
        assert (out / run / "share/report.html").is_file()
    check(out, log)
    key = json.loads((out / KEY).read_text())
    assert f"{MARK}-0" in key["patients"].values()  # and the key is the way back
    assert b"class 0" in everything(out / "one")  # and classes are numbers


TINY = ["--model", "MLP((4,))", "--size", "16"]
TRAINED = [*TINY, "--rounds", "1", "--clients", "2", "--batch-size", "1", "--holdout", "3"]
COMMANDS = {
    "audit": ["audit", *TINY, "--attack", "iDLG(steps=3)", "--images", "4", "--defense", "TopK(keep=0.5)"],
    "train": ["train", *TRAINED],
    "frontier": [
        "frontier",
        *TRAINED,
        "--attack",
        "iDLG(steps=2)",
        "--images",
        "2",
        "--defense",
        "TopK(lin(0.2, 0.5, 2))",
    ],
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of marks that are too long for a tag
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_its_report(command, marked, log, tmp_path, monkeypatch, capsys):
    """Run, run again, reported, and refused for other settings."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs" / "a"
    words = [COMMANDS[command][0], str(marked), *COMMANDS[command][1:], "--out", str(out)]
    with monkeypatch.context() as patch:
        without_charts(patch)
        assert main(words) == 0
        assert main(words) == 0
        assert main([*words, "--seed", "1"]) == 2
        assert MARK not in capsys.readouterr().err, "it may go to a job's log"
        assert main([*words, "--show-paths"]) == 0
    assert MARK in capsys.readouterr().err, "and names files that cannot be read where that is asked for"
    assert main(["report", str(out)]) == 0
    assert MARK not in capsys.readouterr().err
    check(tmp_path / "runs", log)


FAILING = """
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(256, 2)

    def forward(self, x):
        left = int(Path("{calls}").read_text())
        if not left:
            raise RuntimeError("{said}")
        Path("{calls}").write_text(str(left - 1))
        return self.last(x.flatten(1))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of marks that are too long for a tag
@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_in_the_middle(command, marked, log, tmp_path, monkeypatch, capsys):
    """The last call to a user's model fails with a message that names a patient."""
    monkeypatch.chdir(tmp_path)
    calls, place = tmp_path / "calls", tmp_path / f"{MARK}.py"
    place.write_text(FAILING.format(calls=str(calls), said=f"{MARK} {UID}"))
    out = tmp_path / "runs" / "a"
    name, *options = COMMANDS[command]
    words = [name, str(marked), *options, "--model", f"{place}:Net"]
    calls.write_text("1000000")
    assert main([*words, "--out", str(tmp_path / "whole" / "a")]) == 0
    calls.write_text(str(1000000 - int(calls.read_text()) - 1))
    assert main([*words, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "its message is (hidden)" in said
    assert MARK not in said.replace(f"{place}:Net", "")  # which was typed
    assert UID not in said
    assert "Traceback" not in said
    content = everything(tmp_path / "runs").lower() + log.read_text().replace(f"{place}:Net", "").lower().encode()
    assert MARK.lower().encode() not in content
    assert UID.encode() not in content


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of marks that are too long for a tag
def test_the_study_of_a_set_in_dicom(marked, log, tmp_path, monkeypatch, capsys):
    small = Study(
        title="Small",
        source="made up",
        parts=[
            StudyPart(
                name="iDLG", audit={"model": "MLP", "attack": ["iDLG(steps=2)"], "size": 16}, images=2, explained=True
            ),
            StudyPart(
                name="trained",
                audit={"model": "MLP", "attack": ["iDLG(steps=2)"], "size": 16},
                images=2,
                needs_weights=True,
                training={"rounds": 1, "batch_size": 1, "clients": 1, "holdout": 3},
            ),
            StudyPart(
                name="masks",
                masks=True,
                audit={"model": "UNet(2)", "attack": ["iDLG(steps=2)"], "size": 16},
                images=2,
            ),
        ],
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "medpfl.reproduction.experiments.study", lambda name: small if name == "attacks" else study(name)
    )
    out = tmp_path / "study"
    sets = tmp_path / f"{MARK}.yaml"
    sets.write_text(f"melanoma: {marked}\n")
    words = ["reproduce", "attacks", "--data", str(tmp_path), "--sets", str(sets), "--out", str(out), "--images", "2"]
    assert main(words) == 0
    assert "| melanoma | masks |" in (out / "share/attacks.md").read_text()
    assert main(["reproduce", "--from", str(out)]) == 0
    check(out, log)
