"""Study indices, and the key file that leads back to names."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from medpfl import InputError
from medpfl.auditing.report import reread
from medpfl.data import ImageFolder
from medpfl.runs.study_key import KEY_FILE, StudyIndex
from tests.auditing.audit_cases import draw_folder, some_images, tiny

pytestmark = pytest.mark.usefixtures("no_pages_else")


def key_of(out: Path):
    return json.loads((out.parent / KEY_FILE).read_text())


@pytest.fixture
def patients(folder):
    """Create the folder with a patient index: two pictures each, one unknown."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    lines = ["file,patient_id", *(f"{name},Jane Doe {i // 2}" for i, name in enumerate(names[:-1])), f"{names[-1]},"]
    (folder / "index.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.slow
def test_the_key_is_private_and_beside_the_run(patients, tmp_path, pages):
    out = tmp_path / "runs" / "a"
    tiny(patients, out=out)
    assert stat.S_IMODE((out.parent / KEY_FILE).stat().st_mode) == 0o600
    assert sorted(p.name for p in out.parent.iterdir()) == [f".{KEY_FILE}.lock", "a", KEY_FILE]
    assert not list(out.rglob("*key*"))


@pytest.mark.slow
def test_the_key_is_never_in_a_run_directory(folder, tmp_path, monkeypatch):
    (tmp_path / "runs" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "here")
    tiny(folder, out=".")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [f".{KEY_FILE}.lock", "here", KEY_FILE]
    with pytest.raises(InputError, match="beside a run directory, not inside one"):
        tiny(folder, out="inside")
    with pytest.raises(InputError, match="beside a run directory, not inside one"):
        tiny(folder, out=tmp_path / "runs")
    assert list(tmp_path.rglob(KEY_FILE)) == [tmp_path / "runs" / KEY_FILE]


@pytest.mark.slow
def test_the_key_leads_back_to_the_pictures_and_patients(patients, tmp_path):
    out = tmp_path / "runs" / "a"
    report = tiny(patients, images=10, out=out)
    key, data = key_of(out), ImageFolder(patients).load()
    patient_of = dict(zip(data.names, data.patients, strict=True))
    places = {row.image: key["images"][row.image] for row in report.rows}
    assert set(places.values()) == {str(patients / name) for name in data.names}
    for row in report.rows:
        place = Path(places[row.image])
        assert place.is_file()
        assert data.classes[row.label] == place.parent.name
        patient = patient_of[place.relative_to(patients).as_posix()]
        assert (key["patients"][row.patient] if row.patient else None) == patient
    assert sum(row.patient is None for row in report.rows if row.control == "") == 1


@pytest.mark.slow
def test_runs_of_a_folder_share_indices_and_other_folders_do_not(patients, tmp_path):
    a, b = (tiny(patients, images=10, out=tmp_path / "runs" / name) for name in "ab")
    c = tiny(patients, images=10, out=tmp_path / "elsewhere" / "c")
    assert [r.image for r in a.rows] == [r.image for r in b.rows]
    assert [r.patient for r in a.rows] == [r.patient for r in b.rows]
    assert not {r.image for r in a.rows} & {r.image for r in c.rows}
    assert not {r.patient for r in a.rows if r.patient} & {r.patient for r in c.rows}


@pytest.mark.slow
def test_an_image_keeps_its_index_at_any_size_and_under_any_spelling_of_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    spellings = [folder, "data", "./data/../data", ImageFolder(folder), f"ImageFolder({str(folder)!r}, fit='squash')"]
    found = [
        {r.image for r in tiny(s, images=10, out=tmp_path / "runs" / str(i)).rows} for i, s in enumerate(spellings)
    ]
    larger = {r.image for r in tiny(folder, images=10, size=20, out=tmp_path / "runs" / "l").rows}
    assert all(images == larger for images in found)
    assert len(key_of(tmp_path / "runs" / "0")["images"]) == 10


@pytest.mark.slow
def test_equal_names_in_two_folders_are_two_images(folder, tmp_path):
    other = draw_folder(tmp_path / "other", {"benign": 5, "malignant": 5}, seed=1)
    for i, data in enumerate([ImageFolder(folder), ImageFolder(other)]):
        tiny(data, images=10, out=tmp_path / "runs" / str(i))
    key = key_of(tmp_path / "runs" / "0")["images"]
    assert len(key) == 20
    assert len(set(key.values())) == 20


@pytest.mark.slow
def test_indices_are_distinct_and_say_nothing_of_the_order(folder, tmp_path):
    report = tiny(folder, images=10, out=tmp_path / "runs" / "a")
    images = [r.image for r in report.rows if not r.control]
    assert len(set(images)) == 10
    assert all(re.fullmatch(r"i-[0-9a-f]{16}", image) for image in images)


@pytest.mark.slow
def test_without_the_secret_an_index_cannot_be_computed(folder, tmp_path, pages):
    """The secret is in no file of the run directory, and another one gives other indices and fingerprints."""
    out = tmp_path / "runs" / "a"
    tiny(folder, out=out)
    secret = key_of(out)["secret"]
    assert len(secret) >= 32
    assert not [p for p in out.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    data = some_images(20, patients=["p"] * 20)
    one, other = StudyIndex("1", data, "x"), StudyIndex("2", data, "x")
    assert not set(one.images) & set(other.images)
    assert set(one.patients).isdisjoint(other.patients)
    assert one.fingerprint(data) != other.fingerprint(data)
    assert one.images == StudyIndex("1", data, "x").images


@pytest.mark.slow
def test_in_memory_no_key_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = tiny(folder), tiny(folder)
    assert not list(tmp_path.rglob(KEY_FILE))
    assert {r.image for r in first.rows}.isdisjoint(r.image for r in second.rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"7",
        b"null",
        b'{"secret": "a", "images": {}, "patients": {}, "classes": []}',
        b'{"secret": 5, "images": {}, "patients": {}}',
        b'{"secret": "a"}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"",
        b'{"secret": "short", "images": {}, "patients": {}}',
    ],
)
def test_a_damaged_key_is_said_and_kept(folder, tmp_path, content):
    path = tmp_path / "runs" / KEY_FILE
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"the key file .*medpfl-key\.json' is damaged"):
        tiny(folder, out=tmp_path / "runs" / "a")
    assert path.read_bytes() == content


@pytest.mark.slow
def test_a_key_of_before_classes_were_in_it_is_read(folder, tmp_path):
    path = tmp_path / "runs" / KEY_FILE
    path.parent.mkdir()
    path.write_text(json.dumps({"secret": "a" * 32, "images": {"i-0": "x"}, "patients": {}}))
    report = tiny(folder, out=tmp_path / "runs" / "a")
    assert reread(tmp_path / "runs" / "a").classes == report.classes == ("benign", "malignant")
    assert json.loads(path.read_text())["images"]["i-0"] == "x"


@pytest.mark.slow
def test_classes_of_a_run_stay_when_the_folder_changes(folder, tmp_path):
    """A class's number depends on the other classes; a run keeps its original numbers."""
    tiny(folder, out=tmp_path / "runs" / "a")
    draw_folder(folder, {"another": 2})
    with pytest.raises(InputError, match="another audit"):
        tiny(folder, out=tmp_path / "runs" / "a")
    tiny(folder, out=tmp_path / "runs" / "b")
    assert reread(tmp_path / "runs" / "a").classes == ("benign", "malignant")
    assert reread(tmp_path / "runs" / "b").classes == ("another", "benign", "malignant")


@pytest.mark.slow
def test_the_key_grows_with_the_data(folder, tmp_path):
    tiny(folder, out=tmp_path / "runs" / "a")
    before = key_of(tmp_path / "runs" / "a")
    draw_folder(folder, {"third": 2})
    tiny(folder, out=tmp_path / "runs" / "b")
    after = key_of(tmp_path / "runs" / "a")
    assert after["secret"] == before["secret"]
    assert len(after["images"]) == 12
    assert before["images"].items() <= after["images"].items()


@pytest.mark.slow
def test_a_lost_key_is_said_with_its_place_and_a_way_out(folder, tmp_path):
    out = tmp_path / "runs" / "a"
    tiny(folder, out=out)
    rows, key = (out / "share/findings.jsonl").read_bytes(), (out.parent / KEY_FILE).read_bytes()
    (out.parent / KEY_FILE).unlink()
    with pytest.raises(
        InputError, match=rf"the key for .* is missing: it should be the file '{out.parent / KEY_FILE}'"
    ):
        tiny(folder, out=out)
    assert not (out.parent / KEY_FILE).exists(), "no new key takes its place"
    (out.parent / KEY_FILE).write_bytes(key)
    tiny(folder, out=out)
    assert (out / "share/findings.jsonl").read_bytes() == rows
    (out.parent / KEY_FILE).unlink()
    assert tiny(folder, out=out, force=True).rows


@pytest.mark.slow
def test_another_key_in_its_place_is_said(folder, tmp_path):
    tiny(folder, out=tmp_path / "runs" / "a")
    tiny(folder, out=tmp_path / "others" / "a")
    (tmp_path / "runs" / KEY_FILE).write_bytes((tmp_path / "others" / KEY_FILE).read_bytes())
    with pytest.raises(InputError, match=r"\(it was made with another key than the one in .*: put its own key back"):
        tiny(folder, out=tmp_path / "runs" / "a")


@pytest.mark.slow
def test_a_key_that_others_could_read_is_made_private_again_and_that_is_said(folder, tmp_path, capsys):
    out = tmp_path / "runs" / "a"
    for use in (lambda: tiny(folder, out=out), lambda: reread(out)):
        tiny(folder, out=out)
        (out.parent / KEY_FILE).chmod(0o644)
        capsys.readouterr()
        use()
        assert stat.S_IMODE((out.parent / KEY_FILE).stat().st_mode) == 0o600
        assert "others could read or change the key file" in capsys.readouterr().err


@pytest.mark.slow
def test_leftovers_of_a_killed_run_are_removed_by_the_next(folder, tmp_path):
    out = tmp_path / "runs" / "a"
    tiny(folder, out=out)
    names = (
        "run.json",
        "share/report.html",
        "private/images/x.safetensors",
        "private/pictures/x.png",
        f"../{KEY_FILE}",
    )
    left = [(out / name).parent / f".{(out / name).name}.0a1b2c3d" for name in names]
    kept = out / ".mine.0a1b2c3d"
    for path in [*left, kept]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    tiny(folder, out=out)
    assert not [path for path in left if path.exists()]
    assert kept.exists()
