"""The engine that computes tasks on a Ray cluster, or on one that it starts on this machine. Does not import torch."""

from __future__ import annotations

import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from time import monotonic
from typing import Any

from medpfl.core.errors import InputError
from medpfl.core.messages import Speech
from medpfl.core.progress import listening
from medpfl.core.versions import version_of
from medpfl.engines.engine import TRIES, Again, Crew, Engine, Lost, Results, Watch, Work
from medpfl.engines.sending import packed
from medpfl.engines.threads import set_threads

__all__ = ["Cluster"]

_PACKAGES = ("medpfl", "torch", "numpy")
"""Packages whose versions must be the same in all workers."""
_TICK = 0.5
"""Seconds after which a wait for results ends, so that Ctrl-C is heard, and between two notes of a task's progress."""
_PATIENCE = 10.0
"""Seconds in which a cluster must answer."""
_INSTALL = "pip install 'medpfl[cluster]'"


class Cluster(Engine):
    """Computes tasks on the cluster at ``RAY_ADDRESS``; without one, on a cluster of this machine that ends with them.

    Args:
        workers: most tasks at the same time; ``None`` for as many as the cluster has room for.
        threads: number of torch threads, and of processor cores, for each task.
        device: device of the run. On CUDA, tasks on a machine share its GPUs equally.
    """

    def __init__(self, workers: int | None, threads: int = 1, device: str = "cpu") -> None:
        _ray()
        self.workers, self.threads, self.device = workers, threads, device

    @contextmanager
    def crew(self, work: Work) -> Iterator[Crew]:
        """Yield the cluster; see `Engine.crew`."""
        ray, payload = _ray(), packed(work)
        _connect(os.environ.get("RAY_ADDRESS"), self.workers, self.threads)
        try:
            gpus = 0.0 if self.device == "cpu" else _share(ray.cluster_resources(), self.threads)
            task = ray.remote(num_cpus=self.threads, num_gpus=gpus, max_retries=TRIES - 1)(_perform)
            told = {name: version_of(name) for name in _PACKAGES}
            shared, board = _stored(payload), _board()
            yield _Crew(
                lambda number, one: task.remote(shared, one, self.threads, told, Speech.now(), board, number),
                self._room,
                board,
            )
        finally:
            ray.shutdown()

    def _room(self) -> int:
        """Return how many tasks the cluster may compute now; nodes come and go."""
        return self.workers or int(_ray().cluster_resources().get("CPU", 1.0) / self.threads) or 1


class _Crew(Crew):
    def __init__(self, submit: Callable[[int, Any], Any], room: Callable[[], int], board: Any) -> None:
        self.submit, self.room, self.board = submit, room, board
        self.numbers, self.look = count(), board.take.remote()

    def results(self, tasks: Sequence[Any], watch: Watch | None = None) -> Results:
        ray, watch = _ray(), watch or Watch()
        tasks, todo = list(tasks), deque(range(len(tasks)))
        running, places = dict[Any, int](), dict[int, int]()  # numbers by reference, places by number
        while todo or running:
            room = self.room()
            while todo and len(running) < room:
                place, number = todo.popleft(), next(self.numbers)
                running[self.submit(number, tasks[place])] = number
                places[number] = place
                watch.begin(place)
            done, _ = ray.wait(list(running), num_returns=1, timeout=_TICK)
            for number, share in self._shares():
                if number in places:
                    watch.report(places[number], share)
            for reference in done:
                place = places.pop(running.pop(reference))
                result = _result(reference)
                if isinstance(result, Again):
                    tasks[place] = result.task
                    todo.append(place)
                else:
                    watch.end(place)
                yield place, result

    def _shares(self) -> list[tuple[int, float]]:
        """Return what workers noted since the last look, if the board has answered; do not wait for it."""
        ray = _ray()
        if not ray.wait([self.look], timeout=0)[0]:
            return []
        look, self.look = self.look, self.board.take.remote()
        try:
            return list(ray.get(look).items())
        except ray.exceptions.RayError:  # it went with its node, and starts again on another
            return []


class _Board:
    """Shares of running tasks that are done, by the tasks' numbers: workers note them, and the driver takes them."""

    def __init__(self) -> None:
        self.shares: dict[int, float] = {}

    def note(self, number: int, share: float) -> None:
        self.shares[number] = share

    def take(self) -> dict[int, float]:
        shares, self.shares = self.shares, {}
        return shares


def _board() -> Any:
    return _ray().remote(num_cpus=0, max_restarts=-1)(_Board).remote()


def _ray() -> Any:
    """Import Ray.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray  # type: ignore[import-not-found]  (an extra)
    except ImportError:
        raise InputError(f"the engine ray needs Ray: {_INSTALL}, or use --engine processes") from None
    return ray


def _connect(address: str | None, workers: int | None, threads: int) -> None:
    ray = _ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report over the network
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of a change to come
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address:
            _check_reachable(address)
            ray.init(address=address, **quiet)
        else:
            count = None if workers is None else workers * threads
            ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"the cluster at RAY_ADDRESS={address}" if address else "a cluster on this machine"
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{where} cannot be used: {reason}; start it with 'ray start --head', with the same RAY_AUTH_TOKEN here "
            "and there; unset RAY_ADDRESS to start one here; or use --engine processes"
        ) from error


def _check_reachable(address: str) -> None:
    """Raise `OSError` if nobody listens at ``host:port``, for which Ray would wait for minutes."""
    host, found, port = address.rpartition("://")[2].rpartition(":")
    if found and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), _PATIENCE):
            pass


def _share(resources: Any, threads: int) -> float:
    """Return the share of a GPU for each task, if tasks fill all processor cores."""
    gpus, cores = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    if not gpus:
        raise InputError("the cluster has no GPU that Ray knows: leave out --device, or use another cluster")
    return min(1.0, gpus * threads / cores)


def _stored(payload: bytes) -> Any:
    """Put the work into Ray's store once, for all workers."""
    ray = _ray()
    try:
        return ray.put(payload)
    except (ray.exceptions.RayError, OSError) as error:
        raise InputError(
            f"Ray's object store has no space for this run's {len(payload) / 2**30:.2f} GiB: enlarge it (ray start "
            "--object-store-memory BYTES), or use --engine processes"
        ) from error


def _result(reference: Any) -> Any:
    """Return a task's result, or `Lost`; raise what the work raised."""
    ray = _ray()
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, BaseException) else error from None
    except ray.exceptions.RayError as error:  # its worker, its node, or its memory
        reason = str(error).strip().partition("\n")[0]
        return Lost(f"its worker on the cluster ended ({type(error).__name__}: {reason[:200]})")


class _Opened:
    """The work of this worker process, by the bytes that it came in."""

    payload: bytes = b""
    work: Any = None


def _perform(
    payload: bytes,
    task: Any,
    threads: int,
    versions: dict[str, str],
    speech: Speech | None,
    board: Any,
    number: int,
) -> Any:
    """Compute a task in a worker of the cluster."""
    own = {name: version_of(name) for name in versions}
    if other := [
        f"{name} {own[name]} in place of {versions[name]}" for name in versions if own[name] != versions[name]
    ]:
        raise InputError(
            f"a worker of the cluster has {' and '.join(other)}: install the same versions on all of its machines"
        )
    if _Opened.payload is not payload and _Opened.payload != payload:
        set_threads(threads)
        _Opened.payload, _Opened.work = payload, pickle.loads(payload)
    latest = -_TICK

    def note(share: float, _: Any) -> None:
        nonlocal latest
        if (now := monotonic()) - latest >= _TICK:
            latest = now
            board.note.remote(number, share)

    with listening(note), speech.applied() if speech else nullcontext():
        return _Opened.work(task)
