"""A page as PDF, printed by a Chromium that is already on the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from medpfl.core.atomic_files import PRIVATE, SHARED, write
from medpfl.core.errors import InputError
from medpfl.core.messages import PRIVATE_FOLDER

__all__ = ["check_chromium", "chromium", "printed"]

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome", "microsoft-edge")
_SECONDS = 120


def chromium() -> str | None:
    """Return the path to a browser that can print pages, or ``None`` if there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


def check_chromium() -> None:
    """Raise `InputError` if there is no browser that can print pages."""
    if chromium() is None:
        raise InputError(
            "--pdf needs Chromium or Chrome, and there is none on this machine: install one (on Debian: apt-get "
            "install chromium), or open the page in any browser and print it there"
        )


def printed(pages: Iterable[Path]) -> list[Path]:
    """Print HTML pages into PDF files beside them, and return these; one from a private folder stays private.

    Raises:
        InputError: there is no browser, or it fails.
    """
    check_chromium()
    return [_printed(page) for page in pages if page.suffix == ".html"]


def _printed(page: Path) -> Path:
    private = page.parent.name == PRIVATE_FOLDER
    # The browser's own files lie where the page may lie, in case it dies before they are removed.
    with tempfile.TemporaryDirectory(prefix=".print-", dir=page.parent if private else None) as own:
        made = Path(own, "page.pdf")
        command = [
            chromium() or "", "--headless", "--disable-gpu", "--disable-extensions", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--no-default-browser-check",
            "--no-first-run", "--disable-crash-reporter", f"--user-data-dir={own}/profile",
            # Chromium's own header and footer would print the page's path.
            "--no-pdf-header-footer", f"--print-to-pdf={made}", page.resolve().as_uri(),
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.insert(1, "--no-sandbox")  # Chromium refuses to start otherwise
        try:
            subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True)
            content = made.read_bytes()
        except (OSError, subprocess.SubprocessError) as error:
            raise InputError(
                "Chromium could not print the page as PDF: open the page in a browser and print it there"
            ) from error
    return write(page.with_suffix(".pdf"), content, PRIVATE if private else SHARED)
