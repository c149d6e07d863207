"""A task as the filters see it: the global weights that arrived, the round, and the watched training."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvflare.apis.filter import FilterChainType, FilterContextKey
from nvflare.apis.fl_constant import FilterKey, FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.task_utils import get_filters
from nvflare.app_common.app_constant import AppConstants
from nvflare.private.privacy_manager import Scope
from torch import Tensor

from medpfl.core.experiments.limits import ROUNDS
from medpfl.integrations.nvflare.anywhere import WatchAnywhere

__all__ = ["Task", "begin", "chain_around", "end", "is_data", "peer_of", "round_in", "task_of", "tensors_of"]


@dataclass(eq=False)
class Task:
    """A training task of one client.

    Attributes:
        weights: the global weights.
        round: the round, if the task states it.
        name, id: the task's name, such as ``train``, and its number, if the context states them.
        watch: the watched training; ``None`` at the server, or if no recorder asked for it.
    """

    weights: dict[str, Tensor]
    round: int | None
    name: str | None
    id: str | None
    watch: WatchAnywhere | None = None


_tasks: dict[tuple[str, str], Task] = {}
"""Running tasks by job and client: filters of both chains are different objects."""

_latest: dict[str, tuple[list[Any], dict[str, Tensor]]] = {}
"""The last weights by job: a server sends the same ones to all clients."""


def is_data(part: Any) -> bool:
    """Return True if a filter stands in the chain of task data, False in the chain of results."""
    return part.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN


def at_server(context: FLContext, data: bool) -> bool:
    """Return True if the filters run at the server: it sends task data, and receives results."""
    return context.get_prop(FLContextKey.FILTER_DIRECTION) == (FilterKey.OUT if data else FilterKey.IN)


def peer_of(context: FLContext, data: bool) -> str:
    """Return the name of the client that a task belongs to."""
    if at_server(context, data):
        peer = context.get_peer_context()
        return "" if peer is None else peer.get_identity_name() or ""
    return context.get_identity_name() or ""


def begin(context: FLContext, content: Mapping[str, Any], shareable: Shareable) -> Task:
    """Remember a task's weights, and return the task. A second filter in the same chain gets the same task."""
    key = (_job(context), peer_of(context, True))
    held = _tasks.get(key)
    weights, called = _shared(key[0], content), _called(context)
    if held is not None and held.weights is weights and (held.name, held.id) == called:
        return held
    if held is not None and held.watch is not None:
        held.watch.stop()
    _tasks[key] = Task(weights, round_in(shareable), *called)
    return _tasks[key]


def task_of(context: FLContext) -> Task | None:
    """Return the task that a result answers; ``None`` if no filter saw its data."""
    held = _tasks.get((_job(context), peer_of(context, False)))
    return held if held is not None and (held.name, held.id) == _called(context) else None


def end(context: FLContext) -> None:
    """Forget the task of a client, at the end of its chain of results."""
    job = _job(context)
    if (held := _tasks.pop((job, peer_of(context, False)), None)) and held.watch:
        held.watch.stop()
    if not any(own == job for own, _ in _tasks):
        _latest.pop(job, None)


def _called(context: FLContext) -> tuple[str | None, str | None]:
    return context.get_prop(FLContextKey.TASK_NAME), context.get_prop(FLContextKey.TASK_ID)


def _job(context: FLContext) -> str:
    return str(context.get_job_id() or "")


def _shared(job: str, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the content as tensors; the same ones for the same arrays."""
    arrays, state = _latest.get(job, ([], {}))
    if list(state) != list(content) or any(a is not b for a, b in zip(arrays, content.values(), strict=False)):
        state = tensors_of(content)
        _latest[job] = (list(content.values()), state)
    return state


def tensors_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return copies of arrays as tensors by name: FLARE sends NumPy arrays, NumPy numbers or tensors."""
    return {
        name: value.detach().cpu().clone() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        for name, value in content.items()
    }


def round_in(shareable: Shareable) -> int | None:
    """Return the round in a header, or ``None``."""
    told = shareable.get_header(AppConstants.CURRENT_ROUND)
    return int(told) if isinstance(told, int) and 0 <= told <= ROUNDS else None


def chain_around(own: Any, context: FLContext) -> tuple[list[Any], list[Any]] | None:
    """Return the filters before and after one in its chain of results; ``None`` if the context does not tell them.

    FLARE runs the filters of the site's ``privacy.json`` first, and those of the job after them.
    """
    runner, name = context.get_prop(FLContextKey.RUNNER), context.get_prop(FLContextKey.TASK_NAME)
    direction = context.get_prop(FLContextKey.FILTER_DIRECTION)
    job = getattr(runner, "task_result_filters", None)  # the server's runner keeps them in its configuration
    job = getattr(getattr(runner, "config", None), "task_result_filters", None) if job is None else job
    if job is None or name is None:
        return None
    chain = get_filters(Scope.TASK_RESULT_FILTERS_NAME, context, job, name, direction)
    places = [i for i, one in enumerate(chain) if one is own]
    return (chain[: places[0]], chain[places[0] + 1 :]) if places else None
