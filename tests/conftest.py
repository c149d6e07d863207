"""Fixtures for all tests. They use one thread: small tensors gain nothing from two, and runs repeat bit by bit.

The processes that tests start, and numpy's linear algebra, take the number of threads from the environment.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and numpy are imported

import torch

from medpfl.isolation.parent import Isolated, Worker

torch.set_num_threads(1)
# The process from which workers are forked imports these once, whichever test starts it.
multiprocessing.set_forkserver_preload(["medpfl.auditing.work", "medpfl.training.work", "torch._dynamo"])
pytest.register_assert_rewrite("tests.attacks.attack_contract", "tests.defenses.defense_contract")

SETS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_sets() -> Path:
    """Return the folder with the real image sets, if this machine has it."""
    if not (SETS / "brain_mri").is_dir():
        pytest.skip("the real image sets (shared/data beside the repository) are not on this machine")
    return SETS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create ten gray pictures in two classes, for the audit's tests."""
    from tests.auditing.audit_cases import draw_folder

    return draw_folder(tmp_path / "data", {"benign": 5, "malignant": 5})


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pages, which takes most of a small audit, for tests that read what else is in a run directory."""
    monkeypatch.setattr("medpfl.reporting.write_pages", lambda *_: [])
    monkeypatch.setattr("medpfl.reporting.training.write_training_page", lambda folder, *_: folder / "report.html")


@pytest.fixture
def charts() -> None:
    """Draw the charts of pages, in spite of `no_charts_else`."""


@pytest.fixture(autouse=True)
def no_charts_else(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave charts out, which take most of the time of a page, except for tests of pages or of all that is written."""
    if "charts" not in request.fixturenames:
        from tests.auditing.audit_cases import without_charts

        without_charts(monkeypatch)


@pytest.fixture
def pages() -> None:
    """Draw pages in spite of `no_pages_else`."""


@pytest.fixture
def no_pages_else(request: pytest.FixtureRequest) -> None:
    """Draw no pages, except for tests that ask for `pages`: they read every file of a run."""
    if "pages" not in request.fixturenames:
        request.getfixturevalue("no_pages")


@pytest.fixture
def probes() -> None:
    """Time a few steps of each search, as audits do that show their progress."""


@pytest.fixture(autouse=True)
def no_probes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suppose that searches take no time, except for tests that ask for `probes`: one takes as long as an audit."""
    if "probes" not in request.fixturenames:
        monkeypatch.setattr("medpfl.auditing.forecast.costs._of_steps", lambda *_: 0.01)


@pytest.fixture
def other_attacks() -> None:
    """Check the attacks that an audit leaves out, in spite of `no_other_attacks`."""


@pytest.fixture(autouse=True)
def no_other_attacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suppose that an audit leaves out no attack that accepts the model: checking takes a tenth of a small audit."""
    if "other_attacks" not in request.fixturenames:
        monkeypatch.setattr("medpfl.auditing.feasibility.Feasibility._accepted", ())


@pytest.fixture(autouse=True)
def no_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait until files are on the disk: killed processes lose nothing by it, and no test cuts the power."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence progress lines, which would appear only on a busy machine."""
    monkeypatch.setattr("medpfl.runs.pulse.EVERY", 0.0)


@pytest.fixture(autouse=True)
def no_places_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the data folders of earlier tests: messages would hide their file names, such as "file"."""
    monkeypatch.setattr("medpfl.core.messages._places", {})


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """Return one attack process for all tests that leave it alive: it takes seconds to start."""
    made = Worker()
    yield made
    made.close()


@pytest.fixture
def shared(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Give audits the one process, and keep it alive. Modules that it imported for other tests do not count."""
    lend(worker, monkeypatch)
    return worker


def lend(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give audits one process, and keep it alive."""
    told = worker.ask("other tests", {"do": "modules"}).head["modules"]
    modules = Isolated.modules
    monkeypatch.setattr(Isolated, "modules", lambda a: {k: v for k, v in modules(a).items() if k not in told})

    @contextmanager
    def lent(every: bool) -> Iterator[Worker]:
        worker.every = every
        yield worker

    monkeypatch.setattr("medpfl.auditing.isolating.started", lent)


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Yield a function that presses Ctrl-C, under Python's own handler: a shell's background job ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests in this folder itself, of whole programs: the longest must not be the last."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collection, which would walk through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


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
