"""The options for pages on the command line: the maker's words, PDF, comparison, and the model check."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from medpfl import Run, compare
from medpfl.cli import main
from medpfl.core.errors import InputError
from tests.reporting.browser import needs_chromium, pages_in

pytestmark = pytest.mark.usefixtures("charts")

TINY = ["--model", "LeNet('idlg')", "--attack", "iDLG(steps=3)", "--images", "3", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return two run directories; the second is titled and has a defense."""
    places = [tmp_path_factory.mktemp("runs") / name for name in ("a", "patient-name")]
    words = ["--title", "Titled <b>", "--site", "Here", "--contact", "me", "--alias", "ct-1"]
    assert main(["audit", "samples", *TINY, "--out", str(places[0])]) == 0
    assert main(["audit", "samples", *TINY, *words, "--defense", "Signs", "--out", str(places[1])]) == 0
    return list(map(str, places))


@pytest.mark.extra
def test_the_makers_words_are_on_the_page_and_change_no_row(runs, capsys):
    page, found = Path(runs[1], "share", "report.html"), Path(runs[1], "share", "findings.jsonl")
    rows, text = found.read_text(), page.read_text()
    for word in ("Titled &lt;b&gt;", "Here", "me", "ct-1"):
        assert word in text
    again = ["audit", "samples", *TINY, "--title", "Another", "--defense", "Signs", "--out", runs[1]]
    assert main(again) == 0
    assert "Another" in page.read_text()
    assert "Titled" not in page.read_text()
    assert found.read_text() == rows, "the run is the same"


@pytest.mark.parametrize("text", ["x" * 201, "two\nlines", "\x1b[2J"])
def test_words_for_the_pages_are_one_printable_line(text):
    with pytest.raises(InputError, match=r"site is .*one line with at most 200 characters"):
        Run(site=text)


@pytest.mark.extra
def test_compare_prints_both_runs_and_names_no_path_in_files(runs, tmp_path, capsys):
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    assert main(["compare", *runs, "--page", str(page), "--csv", str(table)]) == 0
    out = capsys.readouterr().out
    assert out.count("iDLG(steps=3)") >= 3
    assert "The runs differ in: defenses" in out
    assert f"wrote {page}" in out
    with table.open(newline="") as file:
        assert {line["run"].split(" (")[0] for line in csv.DictReader(file)} == {"run 1", "run 2"}
    for path in (page, table):
        assert "patient-name" not in path.read_text()
    assert str(compare(runs)).splitlines()[-1].startswith("The runs differ in: defenses")


@pytest.mark.extra
def test_compare_leaves_the_runs_as_they_are(runs, tmp_path):
    before = {path: path.read_bytes() for run in runs for path in Path(run).rglob("*") if path.is_file()}
    compare(runs)
    assert {path: path.read_bytes() for run in runs for path in Path(run).rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("words", [["compare", "x"], ["compare", "x", "y", "--pdf"], ["compare", "nowhere", "nothing"]])
def test_compare_says_what_is_missing(words, capsys):
    assert main(words) == 2
    assert "medpfl: error: " in capsys.readouterr().err


@pytest.mark.extra
def test_a_comparison_as_json_names_runs_by_number_and_title_or_alias(runs, capsys):
    assert main(["compare", *runs, "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert [name.partition(" (")[0] for name in found["names"]] == ["run 1", "run 2"]
    assert not any(run in text for run in runs)
    assert "patient-name" not in text
    assert "run 2 " in found["text"]


def test_a_run_without_a_title_is_named_by_its_alias():
    from medpfl.core.experiments.settings import Settings
    from medpfl.reporting.page.comparison import run_names

    class One:
        settings = Settings(about={"alias": "ct-1"})

    assert run_names([One(), One()]) == ["run 1 (ct-1)", "run 2 (ct-1)"]


@pytest.mark.parametrize("command", ["audit", "demo", "train"])
def test_pdf_without_a_run_directory_is_refused_before_any_work(command, capsys):
    assert main([command, "--pdf"]) == 2
    assert "error: --pdf prints the pages of a run directory: name one with --out" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [True, False])
def test_a_page_that_cannot_be_printed_is_an_error_before_the_result(runs, monkeypatch, capsys, as_json):
    monkeypatch.setattr("medpfl.reporting.page.pdf.shutil.which", lambda name: "/bin/false")
    assert main(["report", runs[0], "--pdf", *(["--json"] if as_json else [])]) == 2
    out, err = capsys.readouterr()
    assert "could not print the page as PDF" in err
    assert "the pages in HTML are written" in err
    if as_json:
        assert json.loads(out)["status"] == 2, "one object, the error"
    else:
        assert out == ""


def test_pdf_without_a_browser_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("medpfl.reporting.page.pdf.shutil.which", lambda name: None)
    assert main(["audit", "samples", *TINY, "--out", str(tmp_path / "o"), "--pdf"]) == 2
    assert "apt-get install chromium" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.extra
@needs_chromium
def test_report_prints_the_pages_of_a_run(runs, capsys):
    assert main(["report", runs[0], "--quiet", "--pdf"]) == 0
    assert "report-with-images.pdf" in capsys.readouterr().out
    assert pages_in(Path(runs[0], "share", "report.pdf").read_bytes()) == 1


@pytest.mark.extra
def test_the_model_check_is_a_page(tmp_path, capsys):
    page = tmp_path / "model.html"
    assert main(["check-model", "LeNet('idlg')", "--page", str(page), "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["outputs"] == 2
    text = page.read_text()
    assert "What do updates of this model reveal" in text
    assert "RGAP" in text
