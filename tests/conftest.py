"""Fixtures of all tests. One thread: small tensors gain nothing by two, and runs repeat to the bit."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
pytest.register_assert_rewrite("tests.attacks.attack_contract", "tests.defenses.defense_contract")

SETS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_sets() -> Path:
    """The folder of real image sets, where this machine has it."""
    if not (SETS / "brain_mri").is_dir():
        pytest.skip("the real image sets (shared/data beside the repository) are not on this machine")
    return SETS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten gray pictures in two classes, for the audit's tests."""
    from tests.auditing.audit_cases import draw_folder

    return draw_folder(tmp_path / "data", {"benign": 5, "malignant": 5})


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long on a busy machine must not print more than elsewhere."""
    monkeypatch.setattr("medpfl.runs.progress_bar.APART", float("inf"))


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Presses Ctrl-C. A job in the background of a shell ignores it, so that Python's own handler is put there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which tests were skipped because a package is missing."""
    for report in _skipped_for_a_package(terminalreporter):
        terminalreporter.write_line(f"SKIPPED FOR A MISSING PACKAGE: {report.nodeid}: {report.longrepr[2]}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if a test was skipped because a package is missing; such tests are marked `extra` instead."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _skipped_for_a_package(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skipped_for_a_package(reporter: pytest.TerminalReporter) -> list[pytest.TestReport]:
    missing = re.compile("could not import|not installed|pip install|No module named")
    return [report for report in reporter.stats.get("skipped", ()) if missing.search(str(report.longrepr))]
