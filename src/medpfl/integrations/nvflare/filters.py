"""Filters for NVIDIA FLARE: one records what passes, one applies a defense to it."""

# pyright: reportMissingImports=false
from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from torch import Tensor

from medpfl.core.errors import InputError, nearest
from medpfl.core.messages import say
from medpfl.core.plan import Plan
from medpfl.core.records.origin import Pixels
from medpfl.core.records.steps import UNSTATED, Steps
from medpfl.core.records.truth import RETENTION
from medpfl.core.roles import State
from medpfl.integrations.chain import described
from medpfl.integrations.defending import defend_update, defense_at_the_door, parameters_of
from medpfl.integrations.nvflare import tasks
from medpfl.integrations.nvflare.anywhere import WatchAnywhere
from medpfl.recording import record as recording
from medpfl.recording.watching.watch import Watch

__all__ = ["Defense", "Recorder"]

_KINDS: list[str] = [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF]
_TRAINING = ("train",)


class _TaskFilter(DXOFilter):
    """A filter for the weights of tasks, the same in both chains.

    Args:
        tasks: names of the tasks; ``None`` for all.
        kinds: kinds of the results' contents.
    """

    def __init__(self, tasks: list[str] | None, kinds: list[str]) -> None:
        super().__init__(supported_data_kinds=kinds, data_kinds_to_filter=None)
        self.tasks = tasks

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Pass a message through this filter. The last one of MedPFL in the chain of results ends the task."""
        last = not tasks.is_data(self) and not self._passes_on(fl_ctx)
        try:
            return super().process(shareable, fl_ctx)
        except Exception:
            last = not tasks.is_data(self)  # FLARE calls no later filter
            raise
        finally:
            if last:
                tasks.end(fl_ctx)

    def _passes_on(self, context: FLContext) -> bool:
        around = tasks.chain_around(self, context)
        return around is None or any(isinstance(one, _TaskFilter) for one in around[1])

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """Pass weights of other tasks on; begin a task in the data chain, and take its result in the other."""
        name = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        if name is not None and self.tasks is not None and name not in self.tasks:
            return None
        if tasks.is_data(self):
            if dxo.data_kind == DataKind.WEIGHTS:
                self.begins(dxo, shareable, fl_ctx)
            return None
        return self.result(dxo, tasks.task_of(fl_ctx), fl_ctx)

    def begins(self, dxo: DXO, shareable: Shareable, context: FLContext) -> None:
        """Remember the global weights, and prepare for the training that follows."""
        tasks.begin(context, dxo.data, shareable)

    def result(self, dxo: DXO, task: tasks.Task | None, context: FLContext) -> DXO | None:
        """Return the result to send instead, or ``None`` for an unchanged one."""
        raise NotImplementedError


class Recorder(_TaskFilter):
    """Write a record of each training result that passes. It changes nothing.

    It stands in both chains, with the same arguments. In the chain of task data it remembers the global weights and
    starts to watch the training; in the chain of results it writes. Placed last, it records what leaves the site; a
    second one placed first, with another folder, records the update before the other filters.

    The training is watched if it runs in the client's own process, which is FLARE's default. A training in an external
    process, and every training as the server sees it, is recorded with the steps of `plan`, or with unknown ones.

    Attributes:
        folder: folder for the records; in it, ``{site}`` becomes the client's name, and ``{place}`` becomes ``client``
            or ``server``, where the filter runs.
        truth: True also keeps pixels, labels and order in ``private-truth`` inside the folder, for this site only.
        days: days for which the truth may be kept; ``medpfl forget`` deletes it.
        plan: the plan's options if the training cannot be watched, as in
            ``{"algorithm": "FedAvg", "batch_size": 4, "local_images": 18}``. Without it, no audit attacks the record.
        classes: class names in label order; the records contain them.
        tasks: names of the training tasks; by default ``["train"]``.
        pixels: how images in [0, 1] enter the model, if the loader normalizes them, as in
            ``{"mean": [0.5], "std": [0.25]}``; by default, it is inferred from their values at the client.

    Raises:
        InputError: an argument is not valid.
    """

    def __init__(
        self,
        folder: str,
        truth: bool = False,
        days: int = RETENTION,
        plan: dict[str, Any] | None = None,
        classes: list[str] | None = None,
        tasks: list[str] | None = None,
        pixels: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(list(_TRAINING) if tasks is None else tasks, _KINDS)
        self.folder, self.truth, self.days, self.plan, self.classes = folder, truth, days, plan, classes
        self._plan, self.pixels = None if plan is None else _plan(plan), pixels
        self._pixels = None if pixels is None else Pixels.from_dict(pixels)

    def begins(self, dxo: DXO, shareable: Shareable, context: FLContext) -> None:
        """Watch the training that follows, at the client. An error is a note: it does not stop the federation."""
        try:
            task = tasks.begin(context, dxo.data, shareable)
            if tasks.at_server(context, data=True):
                return
            if task.watch is None:
                task.watch = WatchAnywhere(self.truth)
            task.watch.keep = task.watch.keep or self.truth
        except Exception as error:
            say(f"note: this update will not be recorded: {error}")

    def result(self, dxo: DXO, task: tasks.Task | None, context: FLContext) -> None:
        """Write the record. One that cannot be made is a warning: it does not stop the federation."""
        try:
            if task is None:
                raise InputError(
                    "the global weights are not known: put this filter into the chain of task data too, with the same "
                    "arguments (task_data_filters in privacy.json; in a job, add_client_input_filter, and at the "
                    "server add_server_output_filter)"
                )
            self._write(dxo, task, context)
        except Exception as error:  # a federation goes on without its record
            say(f"note: this update was not recorded: {error}")

    def _write(self, dxo: DXO, task: tasks.Task, context: FLContext) -> None:
        server = tasks.at_server(context, data=False)
        if task.watch is not None:
            task.watch.stop()
        trained = self._trained(task.watch)
        watched = trained if isinstance(trained, Watch) else None
        own = parameters_of(None if watched is None else watched.model)
        after, kind = _values(dxo, task.weights, own)
        around = tasks.chain_around(self, context)
        later = [] if around is None else around[1]
        if later and not any(isinstance(one, Recorder) for one in later):
            say(
                f"note: {', '.join(map(described, later))} acts after this recorder, so the record is not what leaves "
                "this site: put the Recorder last in the chain of results; from privacy.json it always stands before a "
                "job's own filters (docs/federation.md)"
            )
        history = [str(one) for one in dxo.get_filter_history() or [] if one != type(self).__name__]
        parts = [one for one in (around[0] if around else []) if not isinstance(one, Recorder)]
        acted = history if around is None or server else [_named(one, dxo) for one in parts]
        defenses = [one.defense for one in parts if isinstance(one, Defense)]
        made = recording.make_record(
            task.weights,
            after,
            trained,
            sent=kind,
            facts=recording.UpdateFacts(
                classes=self.classes,
                pixels=self._pixels,
                defense=" | ".join(defenses) or None,
                source=recording.origin_of("NVIDIA FLARE", ["nvflare"], task.round, "server" if server else "client"),
                filters=acted,
            ),
        )
        truth = watched.truth(self.days) if watched is not None and self.truth else None
        place = self.folder.replace("{place}", "server" if server else "client")
        recording.keep(place.replace("{site}", tasks.peer_of(context, False)), made, truth)
        if task.watch is not None:
            recording.tell_problems(task.watch, self.truth, truth)

    def _trained(self, watch: WatchAnywhere | None) -> Watch | Plan | Steps:
        if watch is not None:
            try:
                watch.steps()
                return watch
            except InputError as error:
                if self._plan is None:
                    say(f"note: the record has no training steps: {error}")
        elif self._plan is None:
            say(f"note: the server's record has no training steps, so no audit can attack it: {UNSTATED}")
        return self._plan or Steps.unknown(None)


class Defense(_TaskFilter):
    """Apply a defense to all weights that pass in a result, whatever the task is called.

    So it also acts on the weights that a site submits for cross-site evaluation: if the task brought no global weights,
    they are not sent. A whole model of FLARE's kind ``FL_MODEL`` is not sent either. Metrics and other contents pass.

    It stands in the chain of results, and, if clients send weights instead of differences, in the chain of task data
    too. Its state between rounds stays in this object, which lives as long as the job.

    Attributes:
        defense: a spec such as ``"Clipping(1.0) | GaussianNoise(0.01)"``.
        tasks: names of the only tasks to act on, so that weights of all others pass undefended; by default, all tasks.
        seed: seed of the draws in every round, for tests only: noise that can be computed again protects nothing.

    Raises:
        InputError: the defense cannot act on a finished update.
    """

    def __init__(self, defense: str, tasks: list[str] | None = None, seed: int | None = None) -> None:
        super().__init__(tasks, [*_KINDS, DataKind.FL_MODEL])
        self.defense, self.seed = defense, seed
        self._defense, self._state = defense_at_the_door(defense), State()

    @property
    def spec(self) -> str:
        """The filter's name in a record."""
        return f"medpfl.Defense({self.defense!r})"

    def result(self, dxo: DXO, task: tasks.Task | None, context: FLContext) -> DXO:
        """Return the defended result.

        Raises:
            InputError: weights are sent and the global weights are not known, or a whole model is sent. FLARE then
                sends no result.
        """
        if dxo.data_kind == DataKind.FL_MODEL:
            raise InputError("the result is a whole model (FL_MODEL), on which no defense acts: send WEIGHTS")
        sent: Literal["weights", "difference"] = "weights" if dxo.data_kind == DataKind.WEIGHTS else "difference"
        if sent == "weights" and task is None:
            raise InputError(
                "the global weights are not known: put this filter into task_data_filters too. If the task brings "
                "none, as in cross-site evaluation, the weights cannot be defended: leave the task out of the job"
            )
        before = {} if task is None else task.weights
        after = tasks.tensors_of(dxo.data)
        model = None if task is None or task.watch is None else task.watch.model
        made, self._state = defend_update(
            self._defense, before, after, self._state, sent=sent, parameters=parameters_of(model), seed=self.seed
        )
        dxo.data = {name: _like(made[name], value) for name, value in dxo.data.items()}
        return dxo


def _named(part: Any, dxo: DXO) -> str:
    """Return a filter's name with its arguments, and for stock filters also the message's steps and kind."""
    text, steps = described(part), dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, 1)
    if not text.startswith(("PercentilePrivacy(", "SVTPrivacy(")):
        return text
    told = [f"steps={steps}"] if isinstance(steps, int) and steps > 1 else []
    told += [f"on={dxo.data_kind!r}"] if dxo.data_kind != DataKind.WEIGHT_DIFF else []
    return f"{', '.join([text[:-1], *told])})"


def _plan(options: dict[str, Any]) -> Plan:
    known = [one.name for one in fields(Plan)]
    for name in options:
        if name not in known:
            raise InputError(
                f"plan: there is no option '{name}'; {nearest(name, known)} (give options of medpfl.Plan, such as "
                '{"batch_size": 8})'
            )
    return Plan(**options)


def _values(
    dxo: DXO, weights: dict[str, Tensor], parameters: set[str] | None
) -> tuple[dict[str, Tensor], Literal["weights", "difference"]]:
    """Return the result's tensors and their kind. FLARE also sends buffers as differences: they become values."""
    after = tasks.tensors_of(dxo.data)
    if dxo.data_kind == DataKind.WEIGHTS:
        return after, "weights"
    buffers = recording.buffers_in(weights) if parameters is None else weights.keys() - parameters
    return {name: weights[name] + t if name in buffers else t for name, t in after.items()}, "difference"


def _like(value: Tensor, original: Any) -> Any:
    if isinstance(original, Tensor):
        return value.to(original.device)
    if isinstance(original, np.ndarray):
        return value.numpy()
    return getattr(original, "dtype", np.dtype(float)).type(value.item())
