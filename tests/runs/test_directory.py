"""A run's directory: who may claim it, what is refused or discarded, and what may be shared."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from medpfl import InputError
from medpfl.core.messages import told
from medpfl.runs.directory import Kind, RunDirectory, known_in, private_folder, share_folder

AUDIT = Kind("audit", 4, ("rows.jsonl", "summary.json"), ("images/*.safetensors", "round-*/weights.safetensors"))
OTHER = Kind("training", 2, ("rounds.jsonl",))
STUDY = Kind("reproduction", 2, ("table.md",), rows=False)


def claimed(out: Path, force: bool = False, kind: Kind = AUDIT, rows: bool = True, **identity: int) -> RunDirectory:
    """Return the directory of a run that began, with one row."""
    directory = RunDirectory(out, kind, identity)
    with directory.locked():
        directory.claim(force)
    if rows:
        (shared(out) / kind.shared[0]).write_text("{}\n")
    return directory


def shared(out: Path) -> Path:
    return share_folder(out, AUDIT)


def edited(out: Path, **changes: object) -> None:
    known = json.loads((out / "run.json").read_text()) | changes
    (out / "run.json").write_text(json.dumps({k: v for k, v in known.items() if v is not None}))


def test_a_run_says_what_it_is_of_and_is_continued_with_its_notes(tmp_path):
    directory = claimed(tmp_path, seed=1)
    directory.note(settings=[1])
    claimed(tmp_path, seed=1)
    claimed(tmp_path, force=True, seed=1)
    known = {"kind": "audit", "format": 4, "identity": {"seed": 1}, "settings": [1]}
    assert directory.noted() == known_in(tmp_path) == known
    assert (tmp_path / "share/rows.jsonl").read_text() == "{}\n"


@dataclass(frozen=True)
class Noted:
    """Notes of a finished run."""

    settings: tuple[int, ...]
    text: str


def test_notes_are_read_as_a_dataclass_once_they_are_all_there_and_of_its_types(tmp_path):
    directory = claimed(tmp_path)
    with pytest.raises(InputError, match=f"^'{tmp_path}' holds an unfinished audit: repeat the command that made it"):
        directory.noted_as(Noted)
    directory.note(settings=[1])
    with pytest.raises(InputError, match=r"its run\.json is damaged: text: .*; repeat the command that made it"):
        directory.noted_as(Noted)
    directory.note(text="a")
    assert directory.noted_as(Noted) == Noted((1,), "a")


def test_another_identity_is_refused_with_its_difference_unless_forced(tmp_path):
    claimed(tmp_path, seed=1, images=4)
    for wrong, said in (
        ({"seed": 2, "images": 4}, "seed"),
        ({"seed": 1}, "images"),
        ({"seed": 3, "b": 1}, "seed, b, images"),
    ):
        with pytest.raises(
            InputError, match=rf"holds another audit \(other {said}\): name another --out, or --force to"
        ):
            claimed(tmp_path, **wrong)
    claimed(tmp_path, force=True, rows=False, seed=2)
    assert not list((tmp_path / "share").iterdir())
    assert known_in(tmp_path)["identity"] == {"seed": 2}


def test_a_run_that_ended_before_its_first_row_is_nothing_to_keep(tmp_path):
    claimed(tmp_path, rows=False, seed=1)
    (shared(tmp_path) / "rows.jsonl").write_text("")
    claimed(tmp_path, rows=False, seed=2)
    claimed(tmp_path / "study", kind=STUDY, rows=False, seed=1)
    with pytest.raises(InputError, match="holds another reproduction"):
        claimed(tmp_path / "study", kind=STUDY, seed=2)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["patient.jpg", "images/1.safetensors", "sub/x.html", ".summary.json"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_file_that_no_run_wrote_is_named_before_any_work_where_it_would_be_shared(tmp_path, name, force, begun):
    if begun:
        claimed(tmp_path)
    foreign = tmp_path / "share" / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("")
    rows = [path.read_text() for path in (tmp_path / "share").glob("rows.jsonl")]
    calls = (
        lambda: claimed(tmp_path, force),
        lambda: RunDirectory(tmp_path, AUDIT).check(force),
        lambda: share_folder(tmp_path, AUDIT),
    )
    for use in calls:
        with pytest.raises(InputError, match=rf"/share' may be shared, .* it also holds '{name}': move that away"):
            use()
    assert foreign.exists()
    assert [path.read_text() for path in (tmp_path / "share").glob("rows.jsonl")] == rows
    assert begun or not (tmp_path / "run.json").exists()


def test_a_link_where_it_would_be_shared_is_named_also_under_a_name_of_ours(tmp_path):
    (tmp_path / "x").mkdir()
    claimed(tmp_path / "run")
    for name in ("summary.json", "folder"):
        link = tmp_path / "run/share" / name
        link.symlink_to(tmp_path / "x")
        with pytest.raises(InputError, match=f"it also holds '{name}'"):
            claimed(tmp_path / "run")
        link.unlink()


def test_many_foreign_files_are_counted_and_a_log_names_none(tmp_path):
    (tmp_path / "share").mkdir()
    for number in range(5):
        (tmp_path / f"share/{number}.jpg").write_text("")
    with pytest.raises(InputError, match=r"it also holds '0.jpg', '1.jpg', '2.jpg' and 2 more: move") as caught:
        claimed(tmp_path)
    assert "0.jpg" not in told(caught.value, shown=False)


def test_what_a_file_manager_keeps_of_a_folder_goes_before_it_is_shared(tmp_path):
    directory = claimed(tmp_path)
    (tmp_path / "share/records").mkdir()
    caches = [tmp_path / "share" / name for name in (".DS_Store", "Thumbs.db", "records/desktop.ini")]
    for path in caches:
        path.write_text("names and previews")
    assert directory.check(force=False)
    assert all(path.exists() for path in caches)  # a check writes nothing
    claimed(tmp_path)
    assert not any(path.exists() for path in caches)


@pytest.mark.parametrize("force", [False, True])
def test_a_run_of_another_kind_is_never_taken(tmp_path, force):
    claimed(tmp_path, kind=OTHER, rows=False)
    with pytest.raises(InputError, match=r"holds a training, not an audit: name another --out$"):
        claimed(tmp_path, force)
    with pytest.raises(InputError, match="holds a training, not an audit"):
        RunDirectory(tmp_path, AUDIT).noted()


@pytest.mark.parametrize(
    "change", [{"format": 3}, {"format": None, "kind": None}, {"format": [4]}, {"format": "4"}], ids=str
)
def test_another_format_is_refused_unless_forced(tmp_path, change):
    directory = claimed(tmp_path)
    edited(tmp_path, **change)
    with pytest.raises(
        InputError, match=r"another version of MedPFL: its format is .*, this version's is 4; name another"
    ):
        claimed(tmp_path)
    with pytest.raises(InputError, match="make its pages with that version, or run again"):
        directory.noted()
    claimed(tmp_path, force=True)
    assert directory.noted()["format"] == 4


def test_force_discards_an_earlier_version_whose_files_had_no_folders(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("rows.jsonl", "images/a.safetensors", "images/mine.txt", "summary.json"):
        (tmp_path / name).write_text("old")
    (tmp_path / "run.json").write_text(json.dumps({"format": 3, "identity": {}}))
    with pytest.raises(InputError, match="its format is 3"):
        claimed(tmp_path)
    claimed(tmp_path, force=True, rows=False)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {".lock", "run.json", "images/mine.txt"}


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"identity": [1]}', "[" * 50_000])
def test_rows_beside_a_missing_or_damaged_run_json_are_not_trusted(tmp_path, text):
    directory = claimed(tmp_path)
    (tmp_path / "run.json").unlink() if text is None else (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"holds another audit \(its run.json is missing or damaged\)"):
        claimed(tmp_path)
    with pytest.raises(
        InputError, match="is not a run directory: it" + (" has no run.json" if text is None else "s run.json")
    ):
        directory.noted()
    claimed(tmp_path, force=True, rows=False)
    assert not (tmp_path / "share/rows.jsonl").exists()


def test_refused_rows_stay_refused_until_they_are_discarded(tmp_path):
    directory = claimed(tmp_path)
    directory.note(refused="the code changed")
    for use in (lambda: claimed(tmp_path), directory.noted):
        with pytest.raises(InputError, match="are refused because the code changed: repeat the command with"):
            use()
    claimed(tmp_path, force=True, rows=False)
    assert "refused" not in directory.noted()


def test_what_a_run_wrote_is_discarded_and_nothing_else(tmp_path):
    directory = claimed(tmp_path)
    ours = [private_folder(tmp_path, "images") / "1.safetensors", tmp_path / "round-1/weights.safetensors"]
    mine = [tmp_path / "round-2/notes.txt", shared(tmp_path) / "letter.pdf", tmp_path / "private/images/1.txt"]
    for path in (*ours, *mine):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    directory.discard()
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in mine)
    assert not (tmp_path / "round-1").exists()


def test_leftovers_of_a_killed_run_are_removed_those_of_its_runs_too(tmp_path):
    nested = tmp_path / "runs" / "audit"
    claimed(nested)
    parts = [
        tmp_path / ".run.json.0a1b2c3d",
        shared(tmp_path) / ".report.html.0a1b2c3d",
        nested / ".run.json.0a1b2c3d",
    ]
    parts += [private_folder(tmp_path, "pictures") / ".x.png.0a1b2c3d", private_folder(tmp_path) / ".x.html.0a1b2c3d"]
    for path in parts:
        path.write_text("half")
    (tmp_path / ".round-3").mkdir()
    claimed(tmp_path)
    assert not [path for path in [*parts, tmp_path / ".round-3"] if path.exists()]


def test_private_is_open_to_its_owner_alone_also_where_it_was_not(tmp_path):
    (tmp_path / "private" / "images").mkdir(parents=True, mode=0o755)
    assert private_folder(tmp_path, "images") == tmp_path / "private/images"
    for folder in (tmp_path / "private", tmp_path / "private/images"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(shared(tmp_path).stat().st_mode) & 0o700 == 0o700


HOLDS = """
import sys, time
from pathlib import Path
from medpfl.runs.directory import Kind, RunDirectory
with RunDirectory(Path(sys.argv[1]), Kind("audit", 4, ("rows.jsonl",))).locked():
    print("held", flush=True)
    time.sleep(120)
"""


def test_one_process_writes_and_a_killed_one_holds_nothing(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=r"another run is writing to .*: wait for it, or name another --out"):
            claimed(tmp_path)
        holder.kill()
    assert holder.returncode == -signal.SIGKILL
    directory = claimed(tmp_path)
    assert stat.S_IMODE((tmp_path / ".lock").stat().st_mode) == 0o600
    with directory.locked(), pytest.raises(InputError, match="another run is writing"):
        claimed(tmp_path)  # in the same process too
    claimed(tmp_path)


WITHOUT_FCNTL = """
import importlib, pkgutil, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")  # of filelock, which locks in another way then
sys.modules["fcntl"] = None
import medpfl
from medpfl import audit, train
found = [module.name for module in pkgutil.walk_packages(medpfl.__path__, "medpfl.") if "__main__" not in module.name]
for name in found:
    extras = ("medpfl.integrations.flower", "medpfl.integrations.nvflare")
    if name != "medpfl.isolation.worker" and not name.startswith(extras):  # the worker is a program that is run
        importlib.import_module(name)
from medpfl.core.atomic_files import remove_leftovers, write
from medpfl.runs.directory import Kind, RunDirectory
out = Path(sys.argv[1])
with RunDirectory(out, Kind("audit", 4, ("rows.jsonl",))).locked():
    write(out / "run.json", b"{}")
(out / ".run.json.0a1b2c3d").write_text("half")
remove_leftovers(out)
print(len(found), *sorted(path.name for path in out.glob("*run.json*")))
"""


@pytest.mark.slow
def test_everything_is_imported_and_written_where_there_is_no_fcntl(tmp_path):
    code = [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    count, *names = done.stdout.split()
    assert int(count) > 100
    assert names == ["run.json"]
