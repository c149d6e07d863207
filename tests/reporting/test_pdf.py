"""Pages as PDF, printed by the machine's own browser."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from medpfl.core.errors import InputError
from medpfl.core.experiments.settings import Settings
from medpfl.reporting import write_pages
from medpfl.reporting.page import pdf
from tests.reporting.browser import needs_chromium, pages_in
from tests.reporting.made_up import SETTINGS, full, picture, row, united


def test_without_a_browser_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    assert pdf.chromium() is None
    with pytest.raises(InputError, match="apt-get install chromium"):
        pdf.printed([Path("report.html")])


def test_a_browser_that_fails_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("<p>x")
    monkeypatch.setattr(pdf.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(InputError, match="could not print"):
        pdf.printed([tmp_path / "report.html"])
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.extra
@needs_chromium
def test_pages_are_printed_beside_themselves_and_stay_private(tmp_path):
    share, private = tmp_path / "share", tmp_path / "private"
    share.mkdir()
    private.mkdir()
    pages = write_pages(share, Settings.of(SETTINGS), united([full()]), [row()], (private, picture))
    made = pdf.printed(pages)
    assert made == [share / "report.pdf", private / "report-with-images.pdf"]
    assert stat.S_IMODE(made[1].stat().st_mode) == 0o600
    for path in made:
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert pages_in(content) == 1
        assert str(tmp_path).encode() not in content
    assert sorted(path.name for path in private.iterdir()) == [
        "pictures", "report-with-images.html", "report-with-images.pdf",
    ]  # fmt: skip
