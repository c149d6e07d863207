"""The engine on a Ray cluster of two nodes: rows do not depend on nodes and workers that are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import medpfl
from medpfl import InputError, Run, Victims
from medpfl.auditing.store import read_rows
from medpfl.core.progress import report
from medpfl.engines import cluster
from medpfl.engines.cluster import Cluster
from medpfl.engines.engine import Watch
from medpfl.runs.directory import RUNS
from tests.auditing.audit_cases import plain, some_images
from tests.federation.federation_cases import federation, look

pytestmark = [pytest.mark.extra, pytest.mark.slow]


@dataclass(frozen=True)
class Slow:
    """Notes each call with its process, and takes a moment."""

    folder: Path

    def __call__(self, number: int) -> int:
        (self.folder / f"{number}-{os.getpid()}").touch()
        time.sleep(0.5)
        return number


@dataclass(frozen=True)
class Reporting:
    """Reports half of it until a file is there."""

    mark: Path

    def __call__(self, number: int) -> int:
        while not self.mark.exists():
            report(0.5)
            time.sleep(0.1)
        return number


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Start a head and a second node, each with one core, as separate programs on this machine."""
    from ray.cluster_utils import Cluster as Nodes

    started = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    started.add_node(num_cpus=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", started.address)
        yield started
    started.shutdown()


@pytest.fixture
def nodes_to_kill():
    with two_nodes() as started:
        yield started


@pytest.fixture(scope="module")
def nodes():
    """Start two nodes once, for all tests that kill none: they take seconds to start."""
    with two_nodes() as started:
        yield started


def test_a_killed_node_and_killed_workers_lose_no_task(nodes_to_kill, tmp_path):
    watched = []
    for place, result in Cluster(None).results(Slow(tmp_path), list(range(10))):
        watched.append((place, result))
        if len(watched) == 1:
            nodes_to_kill.remove_node(next(iter(nodes_to_kill.worker_nodes)), allow_graceful=False)
        if len(watched) == 4:
            os.kill(
                int(max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime).name.partition("-")[2]),
                signal.SIGKILL,
            )
    assert sorted(watched) == [(number, number) for number in range(10)]


@pytest.mark.usefixtures("nodes")
def test_rows_are_those_of_this_process(tmp_path):
    def rows(run):
        report = medpfl.audit(
            "LeNet('idlg')", some_images(8), attacks=["iDLG(steps=3)"], victims=Victims(images=4, size=16),
            run=replace(run, memory=1e-6),
        )  # fmt: skip
        return plain(report.rows, "image", "nearest_image"), report.settings.engine

    (own, inline), (theirs, ray) = rows(Run()), rows(Run(engine="ray"))
    assert own == theirs
    assert inline == "inline, 1 thread"
    assert ray is not None
    assert ray.startswith("ray, ")


@pytest.mark.usefixtures("nodes")
def test_progress_within_a_task_is_seen(tmp_path):
    class Seeing(Watch):
        def report(self, place, share, said=str):
            seen.append((place, share))
            (tmp_path / "mark").touch()

    seen = []
    assert list(Cluster(None).results(Reporting(tmp_path / "mark"), [7], Seeing())) == [(0, 7)]
    assert seen[0] == (0, 0.5)


@pytest.mark.usefixtures("nodes")
def test_the_rows_of_a_federations_records_are_those_of_this_process(tmp_path):
    federation(tmp_path / "received", rounds=(1,))
    found = []
    for engine in (None, "ray"):
        out = tmp_path / "runs" / f"{engine}"
        look(f"{tmp_path}/received/*/*.safetensors", run=Run(out=out, engine=engine))
        files = sorted((out / RUNS).glob("*/share/findings.jsonl"))
        found.append([sorted(plain(list(read_rows(path)), "image"), key=str) for path in files])
    here, there = found
    assert here == there
    assert len(here) == 2


@pytest.mark.usefixtures("nodes")
def test_other_versions_in_a_worker_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "version_of", lambda name: "0.0")
    with pytest.raises(InputError, match=r"a worker of the cluster has medpfl .* in place of 0.0 and torch"):
        list(Cluster(None).results(Slow(tmp_path), [1]))
