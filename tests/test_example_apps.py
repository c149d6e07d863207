"""The examples for running federations: their diffs fit, their pages show them, and their commands parse."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from medpfl.cli.parser import parser_of
from medpfl.cli.words import spelled
from tests.documents import blocks

EXAMPLES = Path(__file__).parent.parent / "examples"
PAGES = sorted(EXAMPLES.glob("*/README.md"))
DIFFS = sorted(EXAMPLES.glob("*/*.diff"))


@pytest.fixture(autouse=True)
def _import_examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("patched", "make_pictures", "processes"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("diff", DIFFS, ids=lambda path: path.name)
def test_a_diff_fits_its_plain_file_and_adds_what_it_says(diff):
    from patched import patched

    text = diff.read_text()
    plain = (diff.parent / text.split("\n")[0].removeprefix("--- ")).read_text()
    assert "medpfl" not in plain
    made = patched(plain, text)
    compile(made, diff.name, "exec")
    lines = text.split("\n")[2:]
    added = [line[1:] for line in lines if line.startswith("+")]
    removed = [line[1:] for line in lines if line.startswith("-")]
    assert len(made.splitlines()) == len(plain.splitlines()) + len(added) - len(removed)
    assert all(line in made.splitlines() for line in added)
    with pytest.raises(SystemExit, match="does not fit"):
        patched(plain + plain, text)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if list(page.parent.glob("*.diff"))], ids=lambda p: p.parent.name
)
def test_a_page_shows_the_lines_that_its_diffs_add(page):
    shown = "\n".join(blocks(page, "diff"))
    for diff in page.parent.glob("*.diff"):
        added = [line for line in diff.read_text().split("\n")[2:] if line.startswith("+") and "import" not in line]
        assert added
        assert all(line in shown for line in added)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_commands_of_a_page_parse_and_its_files_exist(page):
    lines = [line[2:] for text in blocks(page, "console") for line in text.splitlines() if line.startswith("$ ")]
    assert any(line.startswith("medpfl forget") for line in lines)
    for line in lines:
        words = shlex.split(line)
        if words[0] == "medpfl":
            parser_of().parse_args(spelled(words[1:]))
            for place in re.findall(r"--model (\S+\.py):(\w+)", line):
                assert re.search(rf"(def|class) {place[1]}\b", (page.parent / place[0]).read_text())
        elif words[0] == "python":
            assert (page.parent / words[1]).is_file()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists()


def test_pictures_are_the_same_each_time_and_of_three_classes(tmp_path):
    from make_pictures import write

    for name in ("one", "other"):
        write(tmp_path / name, per_class=2)
    files = sorted((tmp_path / "one").rglob("*.png"))
    assert len(files) == 12
    assert {path.parent.name for path in files} == {"disc", "ring", "square"}
    for path in files:
        assert path.read_bytes() == (tmp_path / "other" / path.relative_to(tmp_path / "one")).read_bytes()


def test_notes_in_the_logs_are_found_once(tmp_path):
    from processes import notes

    (tmp_path / "site-1").mkdir()
    (tmp_path / "site-1" / "app.log").write_text("INFO: note: no\nnote: put record(...) first\n" * 2)
    (tmp_path / "other.txt").write_text("note: not a log")
    assert notes(tmp_path) == ["site-1/app.log: note: put record(...) first"]


@pytest.mark.slow
def test_two_checkpoints_are_recorded_and_the_record_is_right(tmp_path, capsys):
    from medpfl.cli import main

    place = EXAMPLES / "checkpoints" / "train.py"
    subprocess.run([sys.executable, str(place), str(tmp_path)], check=True, timeout=120)
    words = ["record", str(tmp_path / "before.pt"), str(tmp_path / "after.pt"), "--batch-size", "4"]
    words += ["--truth", str(tmp_path / "pictures" / "site-1"), "--model", f"{place}:make_model"]
    assert main([*words, "--learning-rate", "0.05", "--out", str(tmp_path / "records")]) == 0
    assert "This record is right." in capsys.readouterr().out
    assert main([*words, "--learning-rate", "0.5", "--out", str(tmp_path / "wrong")]) == 2
    assert "learning rate" in capsys.readouterr().out
