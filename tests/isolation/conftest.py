"""One attack process for all tests that leave it alive: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from medpfl.isolation.parent import Isolated, Worker


@pytest.fixture(autouse=True)
def no_pages_here(no_pages: None) -> None:
    """Nothing here reads a page."""


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """Return the process itself."""
    made = Worker()
    yield made
    made.close()


@pytest.fixture
def shared(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Give audits the one process, and keep it alive. Modules that it imported for other tests do not count."""
    told = worker.ask("other tests", {"do": "modules"}).head["modules"]
    modules = Isolated.modules
    monkeypatch.setattr(Isolated, "modules", lambda a: {k: v for k, v in modules(a).items() if k not in told})

    @contextmanager
    def lent(every: bool) -> Iterator[Worker]:
        worker.every = every
        yield worker

    monkeypatch.setattr("medpfl.auditing.isolating.started", lent)
    return worker
