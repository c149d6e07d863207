"""The frame of every command: its first line, a sign of life, and its result for people or machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

from jsonargparse import Namespace

from medpfl.cli.machine import print_json, result
from medpfl.cli.opening import opening
from medpfl.core.errors import InputError
from medpfl.core.messages import say
from medpfl.core.progress import phase
from medpfl.runs.outlook import Outlook
from medpfl.runs.pulse import pulsing

__all__ = ["LOADING", "check_pdf", "planned", "result_printed", "working"]

LOADING = "loading PyTorch"
"""The phase in which a command imports what it needs."""


@contextmanager
def working(asked: object, quiet: bool = False) -> Iterator[None]:
    """Print what a command will do, before torch is imported, and show while it works that it does."""
    if not quiet:
        say(opening(asked))
    with pulsing(not quiet):
        yield


def check_pdf(given: Namespace) -> None:
    """Raise `InputError` if there will be no page to print as PDF, or no browser that prints it."""
    from medpfl.reporting.page.pdf import check_chromium

    if "out" in given and given.out is None:
        raise InputError("--pdf prints the pages of a run directory: name one with --out")
    if "page" in given and given.page is None:
        raise InputError("--pdf prints a page: name its file with --page")
    check_chromium()


def planned(given: Namespace, plan: Callable[[], Outlook], asked: object) -> int:
    """Print a plan for ``--dry-run``, and return the exit status."""
    began = monotonic()
    with working(asked, given.quiet):
        found = plan()
    found = replace(found, setup=found.setup + monotonic() - began)  # the command loads, checks and times as well
    if given.json:
        print_json({**found.to_dict(), "status": 0})
    else:
        print(*found.lines(), sep="\n")
    return 0


def result_printed(found: Any, given: Namespace, show: Callable[[Any, bool], object], status: int = 0) -> int:
    """Print a result for people by `show`, or as JSON, and return the exit status.

    Raises:
        InputError: a page cannot be printed as PDF; raised before the result is printed.
    """
    files = _pdfs(found, given)
    if given.json:
        content = result(found)
        print_json({**content, "files": [*content["files"], *files], "status": status})
    else:
        show(found, given.quiet)
        for path in files:
            print(f"wrote {path}")
    return status


def _pdfs(found: Any, given: Namespace) -> list[str]:
    """Print a result's pages as PDF, if that was asked, and return the files."""
    if not given.get("pdf"):
        return []
    from medpfl.reporting.page.pdf import printed

    inside = found.reports.values() if isinstance(getattr(found, "reports", None), dict) else ()
    pages = [page for one in (found, *inside) for page in getattr(one, "pages", ())]
    with pulsing(not given.quiet), phase("printing the pages as PDF"):
        try:
            return [str(path) for path in printed(pages)]
        except InputError as error:
            raise InputError(f"{error}; all else is done, and the pages in HTML are written") from error
