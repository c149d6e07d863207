"""Every engine computes the same results, and loses no more than the tasks whose worker ends."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import get_ident

import pytest
import torch

from medpfl import InputError, Run
from medpfl.core.progress import report
from medpfl.engines import choice
from medpfl.engines.choice import engine_of, workers_of
from medpfl.engines.engine import TRIES, Again, Inline, Lost, Watch
from medpfl.engines.processes import Processes
from medpfl.engines.sending import packed, shipped

ENGINES = {
    "inline": Inline,
    "one": lambda: Processes(1),
    "two": lambda: Processes(2),
}
HERE = ["inline", "one", "two"]


@dataclass(frozen=True)
class Square:
    """Squares a number; for -1 it raises, for -2 its process ends the first time, for -3 each time; -4 becomes 4."""

    folder: Path

    def __call__(self, number: int) -> int:
        report(0.5)
        if number == -1:
            raise InputError("-1 has no square here")
        if number == -2 and not (mark := self.folder / "ended").exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == -3:
            os.kill(os.getpid(), signal.SIGKILL)
        return Again(4) if number == -4 else number * number


class Counting:
    """Returns how often this object was called."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, task: int) -> int:
        self.count += task
        return self.count


class Noted(Watch):
    def __init__(self) -> None:
        self.begun, self.shares, self.ended = [], [], []

    def begin(self, place):
        self.begun.append(place)

    def report(self, place, share, said=str):
        self.shares.append((place, share))

    def end(self, place):
        self.ended.append(place)


def engines(names, mark=pytest.mark.slow):
    extra = pytest.mark.extra
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=[mark, *([extra] if n == "ray" else [])]) for n in names]
    )


@pytest.fixture(scope="module")
def ray_crew(tmp_path_factory):
    """Start one Ray cluster of this machine for all tests of squares: it and its workers take seconds to start."""
    with engine_of(Run(engine="ray", workers=2)).crew(Square(tmp_path_factory.mktemp("squares"))) as crew:
        yield crew


@pytest.fixture
def squares(name, tmp_path, request):
    """Return a function that lets an engine square the numbers of a list, with an optional watch."""
    if name == "ray":
        return request.getfixturevalue("ray_crew").results
    return partial(ENGINES[name]().results, Square(tmp_path))


@engines([*HERE, "ray"])
def test_every_task_has_its_result(squares):
    watch = Noted()
    assert dict(squares([3, 4, 5], watch)) == {0: 9, 1: 16, 2: 25}
    assert sorted(watch.begun) == sorted(watch.ended) == [0, 1, 2]


@engines([*HERE, "ray"])
def test_nothing_to_do_is_done(squares):
    assert list(squares([])) == []


@engines([*HERE, "ray"])
def test_what_the_work_raises_is_raised_here(squares):
    with pytest.raises(InputError, match="-1 has no square here"):
        dict(squares([-1, 3]))


@engines([*HERE, "ray"])
def test_a_task_is_replaced_once_the_caller_goes_on(squares):
    watch, kept, tasks = Noted(), list[tuple[int, int]](), [3, -4, 5]
    for place, result in squares(tasks, watch):
        if isinstance(result, Again):
            assert (place, result.task) == (1, 4)
            assert place not in watch.ended
        else:
            kept.append((place, result))
    assert sorted(kept) == [(0, 9), (1, 16), (2, 25)]
    assert sorted(watch.ended) == [0, 1, 2]
    assert tasks == [3, -4, 5]


@engines(["one", "two", "ray"])
def test_a_task_whose_worker_ends_is_tried_again(squares):
    watch = Noted()
    assert dict(squares([3, -2, 5, 6], watch)) == {0: 9, 1: 4, 2: 25, 3: 36}
    assert sorted(watch.begun) == sorted(watch.ended) == [0, 1, 2, 3]


@engines(["one", "two", "ray"])
def test_a_task_whose_worker_ends_each_time_is_lost_alone(name, squares):
    found = dict(squares([3, -3, 5]))
    lost = found.pop(1)
    assert isinstance(lost, Lost)
    assert "worker" in lost.why
    assert name == "ray" or "its worker process was killed; if the memory ran out" in lost.why
    assert found == {0: 9, 2: 25}
    assert TRIES == 3


@dataclass(frozen=True)
class Sleep:
    """Notes its process and sleeps; the first task ends at once."""

    folder: Path

    def __call__(self, number: int) -> int:
        (self.folder / str(os.getpid())).touch()
        if number:
            time.sleep(600)
        return number


@pytest.mark.slow
def test_workers_end_as_soon_as_nobody_wants_their_results(tmp_path):
    with closing(Processes(2).results(Sleep(tmp_path), [0, 1, 2])) as results:
        assert next(results) == (0, 0)
    assert multiprocessing.active_children() == []
    assert not any(is_alive(int(path.name)) for path in tmp_path.iterdir())


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


SCRIPT = """
import sys, time
from pathlib import Path
from medpfl.engines.processes import Processes

class Work:
    def __call__(self, number):
        sys.stdout.write(f"worked {number}\\n")
        sys.stdout.flush()
        if len(sys.argv) > 1:
            time.sleep(600)
        return number + 1

print("began", flush=True)
print(sorted(Processes(2).results(Work(), [1, 2])), flush=True)
"""


def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once(tmp_path):
    found = subprocess.run([sys.executable, script(tmp_path)], capture_output=True, text=True, check=True)
    assert sorted(found.stdout.splitlines()) == sorted(["began", "worked 1", "worked 2", "[(0, 2), (1, 3)]"])


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path):
    command = [sys.executable, script(tmp_path), "long"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == "began\n"
        assert sorted(lines[1:]) == ["worked 1\n", "worked 2\n"]
        process.kill()
        assert process.stdout.read() == "", "the workers held the pipe open as long as they lived"


def test_a_part_of_a_tensor_travels_without_the_whole():
    whole = torch.arange(10_000.0)
    part, turned = whole[:3], torch.arange(6.0).view(2, 3).t()
    sent = shipped({"part": part, "turned": turned, "numbers": [1, "two", None]})
    found = pickle.loads(sent)
    assert len(sent) < 4 * 10_000
    assert torch.equal(found["part"], part)
    assert (found["turned"].stride(), found["turned"].tolist()) == (turned.stride(), turned.tolist())
    assert found["numbers"] == [1, "two", None]


def test_many_images_travel_once_and_as_they_are():
    images = torch.rand(200, 3, 32, 32)
    weights = torch.nn.Parameter(torch.rand(600, 600))
    given = {
        "images": images, "same": images, "part": images[:150], "turned": images.transpose(1, 3), "weights": weights,
        "bytes": (images * 255).byte(), "half": images.bfloat16(), "few": images[0].clone(),
    }  # fmt: skip
    sent = packed(given)
    found = pickle.loads(sent)
    assert len(sent) < 1.1 * sum(part.nbytes for name, part in given.items() if name != "same") + images.nbytes
    for name, part in given.items():
        assert (type(found[name]), found[name].dtype) == (type(part), part.dtype), name
        assert (found[name].stride(), found[name].requires_grad) == (part.stride(), part.requires_grad), name
        assert torch.equal(found[name], part), name
    assert found["same"] is found["images"]
    found["images"].zero_()
    assert torch.equal(found["part"], given["part"]), "each has its own memory, as before"


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has memory without a name")
def test_workers_of_this_machine_open_many_images_where_they_are():
    images, layer, held = torch.rand(200, 3, 32, 32), torch.nn.Linear(600, 600), []
    sent = packed({"images": images, "same": images, "few": images[0].clone(), "layer": layer}, held)
    assert len(sent) < 20_000
    assert len(held) == 2, "images, and weights"
    found = pickle.loads(sent)
    assert torch.equal(found["images"], images)
    assert found["same"] is found["images"]
    assert type(found["layer"].weight) is torch.nn.Parameter
    assert torch.equal(found["layer"].weight, layer.weight)
    found["images"].zero_()
    assert bool(images.any())
    assert torch.equal(pickle.loads(sent)["images"], images), "each worker's changes are its own"


@dataclass(frozen=True)
class Total:
    """Adds a number to the sum of images, which the work holds; for 0 its process ends."""

    images: torch.Tensor

    def __call__(self, number: int) -> float:
        if not number:
            os.kill(os.getpid(), signal.SIGKILL)
        return number + self.images.double().sum().item()


def test_a_worker_in_place_of_one_that_ended_has_the_images_too():
    work = Total(torch.rand(200, 3, 32, 32))
    found = dict(Processes(1).results(work, [1, 0, 2]))
    total = work.images.double().sum().item()
    assert isinstance(found.pop(1), Lost)
    assert found == {0: 1 + total, 2: 2 + total}


@pytest.mark.slow
def test_a_worker_that_ends_before_it_has_its_work_is_lost(monkeypatch):
    monkeypatch.setattr("medpfl.engines.processes.begin", len)  # raises TypeError, and reads nothing
    ((_, found),) = Processes(1).results(partial(max, bytes(2**22)), [b""])
    assert isinstance(found, Lost)


def test_a_crew_keeps_its_work_from_one_sequence_to_the_next(tmp_path):
    for engine in (Inline(), Processes(2)):
        with engine.crew(Counting()) as crew:
            counts = [sorted(count for _, count in crew.results(tasks)) for tasks in ([1], [1], [], [1, 1, 1, 1])]
        assert counts[:3] == [[1], [2], []]
        assert sum(counts[3]) in (3 + 4 + 5 + 6, 3 + 4 + 1 + 2, 3 + 4 + 5 + 1, 3 + 1 + 2 + 3, 1 + 2 + 3 + 4)


def test_work_that_cannot_be_sent_is_refused_with_a_remedy():
    with pytest.raises(InputError, match=r"cannot be sent to another process .*: give your own parts as file.py:Name"):
        packed((get_ident, (number for number in range(3))))


@pytest.mark.parametrize(
    ("run", "kind", "count"),
    [
        (Run(), Inline, 1),
        (Run(workers=1), Inline, 1),
        (Run(workers=3), Processes, 3),
        (Run(engine="processes"), Processes, 5),
        (Run(engine="processes", workers=1), Processes, 1),
        (Run(engine="inline", workers=3), Inline, 1),
    ],
)
def test_the_options_of_a_run_choose_the_engine(run, kind, count, monkeypatch):
    monkeypatch.setattr(choice, "cores", lambda: 5)
    assert isinstance(engine_of(run), kind)
    assert workers_of(run) == count


def test_too_many_workers_are_noted_once(monkeypatch, capsys):
    monkeypatch.setattr(choice, "cores", lambda: 2)
    choice._note.cache_clear()
    for workers in (2, 3, 3):
        with choice.ready(Run(engine="inline", threads=workers)):
            pass
    assert capsys.readouterr().err.count("share 2 processor cores, and slow each other down") == 1


def test_ray_is_needed_only_if_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"the engine ray needs Ray: pip install 'medpfl\[cluster\]'"):
        engine_of(Run(engine="ray"))


@pytest.mark.extra
def test_a_cluster_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"the cluster at RAY_ADDRESS=127.0.0.1:1 cannot be used: .*ray start --head"):
        dict(engine_of(Run(engine="ray", workers=2)).results(Square(tmp_path), [1]))
