"""No patient data leaks through MedPFL: names are marked, and every byte that an audit writes is searched for marks."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from medpfl import Batch, InputError, Plan, Record, Run, Victims, Weights, audit, audit_record, local_update, prepare
from medpfl.auditing.report import reread
from medpfl.cli import main
from medpfl.data import ImageFolder
from medpfl.models import LeNet
from tests.auditing.audit_cases import draw_folder
from tests.flat import flat

MARK = "Zyxwvut"
"""In names of files, of class folders and of folders inside them, patient ids, other columns, metadata and paths."""

CLASSES = f"{MARK}-Anna", f"{MARK}-Bert"
"""A folder for each patient: a mistake that people make."""


@pytest.fixture
def marked(tmp_path: Path, charts: None) -> Path:
    """Create class folders in which everything is marked; four files cannot be read."""
    root = draw_folder(tmp_path / f"{MARK}-hospital" / f"{MARK}-set", dict.fromkeys(CLASSES, 3))
    lines = ["file,patient_id,name,note"]
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        inside = path.parent / f"{MARK}-ward" if i % 2 else path.parent
        inside.mkdir(exist_ok=True)
        about = PngImagePlugin.PngInfo()
        about.add_text("Patient", f"{MARK} metadata")
        with Image.open(path) as image:
            image.save(inside / f"{MARK}-{i}.png", pnginfo=about)
        path.unlink()
        file = (inside / f"{MARK}-{i}.png").relative_to(root).as_posix()
        lines.append(f"{file},{MARK}-patient-{i // 2},{MARK} Doe,{MARK} note")
    (root / "index.csv").write_text("\n".join(lines))
    (root / CLASSES[0] / f"{MARK}-junk.png").write_bytes(b"no picture")
    (root / CLASSES[0] / f"{MARK}-empty.png").write_bytes(b"")
    whole = next(root.rglob(f"{MARK}-0.png")).read_bytes()
    (root / CLASSES[0] / f"{MARK}-cut.png").write_bytes(whole[:-60])
    (root / CLASSES[1] / f"{MARK}-dead.png").symlink_to("nowhere")
    return root


def everything(folder: Path) -> bytes:
    """Return all names and all bytes in a folder, unpacked."""
    found = [b""]
    for path in folder.rglob("*"):
        found.append(path.name.encode())
        if path.is_file():
            content = path.read_bytes()
            found.append(content)
            if content[:2] == b"\x1f\x8b":
                found.append(gzip.decompress(content))
    return b"\n".join(found)


def check(out: Path) -> bytes:
    """Check that the run directory holds no mark, and that only the key lies beside it."""
    assert {p.name for p in out.parent.iterdir()} == {out.name, "medpfl-key.json", ".medpfl-key.json.lock"}
    assert MARK in (out.parent / "medpfl-key.json").read_text(), "the key leads back"
    content = everything(out)
    assert len(content) > 10_000
    assert MARK.lower().encode() not in content.lower()
    return content


COMMON = ["--attack", "iDLG(steps=3)", "--size", "16", "--images", "4", "--defense", "LaplaceNoise(scale=0.1)"]


@pytest.mark.slow
def test_an_audit_of_a_folder(marked, tmp_path, capsys):
    out = tmp_path / "runs" / "a"
    assert main(["audit", str(marked), "--model", "MLP((4,))", *COMMON, "--out", str(out)]) == 0
    content = check(out)
    assert b"class 0: 3" in content, "classes are numbers"
    classes = json.loads((out.parent / "medpfl-key.json").read_text())["classes"]
    assert classes == {json.loads((out / "run.json").read_text())["identity"]["pixels"]: list(CLASSES)}
    shown = capsys.readouterr()
    assert "skipped 4 files that could not be read (--show-paths names them)" in shown.err
    assert MARK not in shown.err + shown.out, "which go to a job's log"
    words = ["audit", str(marked), "--model", "MLP((4,))", *COMMON, "--out", str(out), "--show-paths"]
    assert main(words) == 0
    assert capsys.readouterr().err.count(MARK) >= 4, "where that is asked for"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize("words", [["--quiet"], [], ["--size", "4"], ["--images", "0"], ["--seed", "7"]])
def test_no_message_in_a_log_names_a_file_or_a_class_folder(words, marked, tmp_path, capsys):
    out = tmp_path / "runs" / "a"
    both = [["audit", str(marked), "--model", "MLP((4,))", *COMMON, "--out", str(out)] for _ in range(2)]
    main(both[0])
    main([*both[1], *words])
    main(["audit", str(marked / CLASSES[0]), "--model", "MLP((4,))", *COMMON, *words])
    main(["audit", f"ImageFolder('{marked}', limit=1)", "--model", "MLP((4,))", *COMMON, *words])
    main(["audit", str(marked / "nowhere"), *words])
    shown = capsys.readouterr()
    assert "error" in shown.err
    assert MARK not in shown.err + shown.out


OWN = """
from dataclasses import dataclass
from pathlib import Path
from medpfl.attacks import iDLG
from medpfl.core.roles import Attack, Defense

@dataclass(frozen=True)
class Mine(Attack):
    prior: str = ""
    others: tuple = ()
    def __call__(self, seen, generator):
        return iDLG(steps=2)(seen, generator)

@dataclass(frozen=True)
class Half(Defense):
    table: Path = Path("nowhere")
    def update(self, value, state, generator):
        return value, state
    def __repr__(self):
        return f"Half({self.table})"

def make(weights):
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
"""


@pytest.mark.slow
def test_paths_among_the_arguments_of_a_users_parts_are_written_as_keyed_hashes(marked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{MARK}word").mkdir()
    place = tmp_path / f"{MARK}-lab" / f"{MARK}_own.py"
    place.parent.mkdir()
    place.write_text(OWN)
    attacks = [f"{place}:Mine(prior='/home/{MARK}/7.pt', others=('{MARK}.npz', '{MARK}word'))"]
    options = {"images": 4, "size": 16, "out": tmp_path / "runs" / "a"}
    model = f"{place}:make(weights='{MARK}/w.pt')"

    def run(prior="7", **more):
        from medpfl.inputs.parts import defenses_of

        half = defenses_of([f"{place}:Half"])[1]
        half = type(half)(Path(f"/home/{MARK}/table"))
        own = [attacks[0].replace("7.pt", f"{prior}.pt")]
        return flat(audit, model, marked, attacks=own, defenses=[half], **options, **more)

    first = run()
    content = check(options["out"])
    assert content.count(b"path-") > 10
    rows = (options["out"] / "share/findings.jsonl").read_bytes()
    assert [row.attack for row in run().rows] == [row.attack for row in first.rows]
    assert (options["out"] / "share/findings.jsonl").read_bytes() == rows, "it was not done again"
    assert reread(options["out"]).summary == first.summary
    with pytest.raises(InputError, match="other attacks"):
        run(prior="8")


@pytest.mark.slow
def test_a_terminal_names_the_classes(marked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("medpfl.core.messages.may_show", lambda stream: True)
    monkeypatch.setattr("medpfl.reporting.terminal.may_show", lambda stream: True)
    out = tmp_path / "runs" / "a"
    names = f"class 0: {CLASSES[0]}, class 1: {CLASSES[1]}"
    assert main(["audit", str(marked), "--model", "MLP((4,))", *COMMON, "--out", str(out)]) == 0
    assert names in capsys.readouterr().out
    assert main(["report", str(out)]) == 0
    assert names in capsys.readouterr().out, "from the key"
    (out.parent / "medpfl-key.json").unlink()
    assert main(["report", str(out)]) == 0
    assert MARK not in capsys.readouterr().out


@pytest.mark.slow
def test_every_kind_of_file_was_searched(marked, tmp_path, capsys):
    out = tmp_path / "runs" / "a"
    main(["audit", str(marked), "--model", "MLP((4,))", *COMMON, "--out", str(out), "--quiet"])
    assert {p.suffix or p.name for p in out.rglob("*") if p.is_file()} == {
        ".lock", ".json", ".jsonl", ".html", ".png", ".safetensors",
    }  # fmt: skip
    for path in out.rglob("*.png"):
        with Image.open(path) as image:
            assert not image.info.keys() & {"Patient", "Comment", "exif"}
    assert json.loads((out / "run.json").read_text())["settings"]["data"]["skipped"] == 4


@pytest.mark.slow
def test_resumed_reported_again_and_discarded(marked, tmp_path, capsys):
    out = tmp_path / "runs" / "a"
    words = ["audit", str(marked), "--model", "MLP((4,))", *COMMON, "--out", str(out)]
    assert main(words) == 0
    (out / "share/findings.jsonl").write_bytes((out / "share/findings.jsonl").read_bytes()[:-30])
    assert main(words) == 0
    assert main(["report", str(out)]) == 0
    check(out)
    assert main([*words, "--seed", "1"]) == 2
    assert main([*words, "--seed", "1", "--force"]) == 0
    check(out)


@pytest.mark.slow
def test_a_users_model_and_weights(marked, tmp_path, capsys):
    import torch

    place = tmp_path / f"{MARK}-models"
    place.mkdir()
    code = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))\n"
    (place / f"{MARK}_net.py").write_text(code)
    weights = place / f"{MARK}.pt"
    torch.save({"1.weight": torch.rand(2, 256), "1.bias": torch.rand(2)}, weights)
    out = tmp_path / "runs" / "a"
    model = ["--model", f"{place}/{MARK}_net.py:make", "--weights", str(weights)]
    assert main(["audit", str(marked), *model, *COMMON, "--out", str(out)]) == 0
    check(out)


@pytest.mark.slow
def test_an_interrupted_and_a_failed_audit(marked, tmp_path, capsys, monkeypatch):
    from medpfl.auditing.player import Player

    out, done = tmp_path / "runs" / "a", []
    play = Player.__call__

    def fail(self, job):
        done.append(job)
        if len(done) == 2:
            raise KeyboardInterrupt
        return play(self, job)

    monkeypatch.setattr(Player, "__call__", fail)
    assert main(["audit", str(marked), "--model", "MLP((4,))", *COMMON, "--out", str(out)]) == 130
    assert MARK.encode() not in everything(out)
    assert main(["audit", str(marked), "--model", "MLP((4,))", *COMMON[:-2], "--out", str(out)]) == 2
    assert MARK.encode() not in everything(out)


@pytest.mark.slow
def test_a_record(marked, tmp_path):
    """A record holds its client's names; the audit of it writes none."""
    data = ImageFolder(marked, size=16).load()
    network = LeNet("idlg").build(data.shape, 2, seed=0)
    weights, plan = Weights.of(network), Plan(batch_size=len(data))
    sent = local_update(prepare(network, plan), Batch(data.images, data.labels), plan, weights)
    record = tmp_path / f"{MARK}-record"
    Record(sent, plan, weights, image_shape=data.shape, classes=data.classes).save(record)
    assert record.read_bytes().count(MARK.encode()) == len(CLASSES)
    out = tmp_path / "runs" / "a"
    audit_record(record, marked, "LeNet('idlg')", attacks=["iDLG(steps=3)"], run=Run(out=out))
    reread(out)
    check(out)


@pytest.mark.slow
def test_report_html_holds_no_picture(marked, tmp_path):
    out = tmp_path / "runs" / "a"
    audit("LeNet('idlg')", marked, attacks=["iDLG(steps=3)"], victims=Victims(images=4, size=16), run=Run(out=out))
    shared, private = (out / "share/report.html").read_text(), (out / "private/report-with-images.html").read_text()
    assert re.search(r"data:image/|<img|<image", private)
    assert not re.search(r"data:image/|<img|<image|pictures/", shared)
