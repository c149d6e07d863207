"""Client mods for Flower: one records what leaves the client, one applies a defense to it."""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import ConfigRecord, Context, Message
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.messages import say
from medpfl.core.records.origin import Pixels
from medpfl.core.records.steps import Steps
from medpfl.core.records.truth import RETENTION
from medpfl.core.roles import Defense
from medpfl.integrations.carried import packed, unpacked
from medpfl.integrations.chain import described, named, noticed
from medpfl.integrations.defending import defend_update, defense_at_the_door, parameters_of
from medpfl.integrations.flower.messages import (
    array_record,
    count_of,
    is_training,
    round_of,
    state_in,
    trained_weights,
)
from medpfl.recording import record as recording
from medpfl.recording.watching.watch import Watch, watch

__all__ = ["Defend", "Record", "defend", "record"]

Next = Callable[[Message, Context], Message]

_STATE = "medpfl-defense"
_CHAIN = "wrap_ffn"
"""Function in Flower whose inner functions are the links of the chain of mods."""


_CLIPPING = ("fixedclipping_mod", "adaptiveclipping_mod")
"""Flower's mods whose norm comes with the server's message."""


class _Asked(NamedTuple):
    """The facts of one request that are known before the client trains.

    Attributes:
        weights: the server's weights by the key of their array record.
        round: the federation's round, if the message states it.
        norm: the clipping norm in the message, if any.
        inner, outer: the mods between the recorder and the client's app, and those around the recorder.
    """

    weights: dict[str, dict[str, Tensor]]
    round: int | None
    norm: float | None
    inner: list[Any]
    outer: list[Any]


class Record:
    """A mod that writes a record of each training message's update; see `record`."""

    def __init__(
        self,
        folder: str | Path,
        truth: bool = False,
        days: int = RETENTION,
        classes: Sequence[str] | None = None,
        pixels: Pixels | None = None,
        count: str | None = None,
    ) -> None:
        self.folder, self.truth, self.days = Path(folder), truth, days
        self.classes, self.pixels, self.count = classes, pixels, count

    def __call__(self, message: Message, context: Context, call_next: Next) -> Message:
        """Pass the message on, and record the update in the reply. The reply is never changed.

        A record that cannot be made is a note on standard error: it does not stop the federation.
        """
        if not is_training(message):
            return call_next(message, context)
        try:
            weights = {key: state_in(one) for key, one in message.content.array_records.items()}
            inner, outer = _inner_mods(call_next), _outer_mods(self)
            asked = _Asked(weights, round_of(message), _clipping_norm(message), inner, outer)
        except Exception as error:  # a federation goes on without its record
            say(f"note: this update will not be recorded: {error}")
            return call_next(message, context)
        with watch(keep=self.truth) as seen:
            reply = call_next(message, context)
        if reply.has_error():
            return reply
        try:
            self._write(context, asked, reply, seen)
        except Exception as error:
            say(f"note: this update was not recorded: {error}")
        return reply

    def _write(self, context: Context, asked: _Asked, reply: Message, seen: Watch) -> None:
        sent = trained_weights(asked.weights, reply)
        if asked.outer and not any(isinstance(one, Record) for one in asked.outer):
            say(
                f"note: {', '.join(map(described, asked.outer))} acts after the recorder, so the record is not what "
                "leaves this client: put record(...) first in the list of mods"
            )
        count = count_of(reply, self.count)
        model = seen.model
        trained: Watch | Steps = seen
        try:
            seen.steps()
        except InputError as error:
            say(f"note: the record has no training steps: {error}")
            trained = Steps.unknown(count)
        made = recording.make_record(
            named(sent.before, model),
            named(sent.after, model),
            trained,
            facts=recording.UpdateFacts(
                num_samples=count,
                classes=self.classes,
                defense=" | ".join(one.defense for one in asked.inner[::-1] if isinstance(one, Defend)) or None,
                pixels=self.pixels,
                source=recording.origin_of("Flower", ["flwr"], asked.round),
                filters=[_named(one, asked.norm) for one in asked.inner[::-1] if not isinstance(one, Record)],
            ),
        )
        truth = seen.truth(self.days) if self.truth else None
        recording.keep(_folder_of(self.folder, context), made, truth)
        recording.tell_problems(seen, self.truth, truth)


def _folder_of(folder: Path, context: Context) -> Path:
    """Return the folder with ``{site}`` replaced by the client's partition or, outside a simulation, by its node."""
    number = context.node_config.get("partition-id")
    site = f"node-{context.node_id}" if number is None else f"site-{number}"
    return Path(str(folder).replace("{site}", site))


def _clipping_norm(message: Message) -> float | None:
    """Return the norm that a server with differential privacy tells its clients' clipping mods."""
    told = [config.get("clipping_norm") for config in message.content.config_records.values()]
    return next((float(one) for one in told if isinstance(one, int | float)), None)


def _named(mod: Any, norm: float | None) -> str:
    text = described(mod)
    return f"{text}(clipping_norm={norm})" if norm is not None and text in _CLIPPING else text


class Defend:
    """A mod that applies a defense to each training message's update; see `defend`."""

    def __init__(self, defense: str | Defense, count: str | None = None, seed: int | None = None) -> None:
        self._defense, self.count, self.seed = defense_at_the_door(defense), count, seed

    @property
    def defense(self) -> str:
        """The defense's spec."""
        return repr(self._defense)

    @property
    def spec(self) -> str:
        """The mod's name in a record."""
        return f"medpfl.defend('{self.defense}')"

    def __call__(self, message: Message, context: Context, call_next: Next) -> Message:
        """Pass the message on, and replace the update in the reply.

        The defense's state stays in the client's context, because Flower starts a new process for each message.

        Raises:
            InputError: the reply's arrays are not those of the request, or the state is damaged. Then nothing is sent.
        """
        if not is_training(message):
            return call_next(message, context)
        request = {key: state_in(one) for key, one in message.content.array_records.items()}
        with noticed() as models:
            reply = call_next(message, context)
        if reply.has_error():
            return reply
        sent = trained_weights(request, reply)
        others = [key for key in reply.content.array_records if key != sent.key]
        if others:
            raise InputError(
                f"the reply sends {', '.join(others)} beside the weights, on which no defense acts: send one array "
                "record, or leave out defend(...)"
            )
        names = _parameters(sent.after, models[0] if models else None)
        held = context.state.config_records.get(_STATE, {}).get("state")
        kept = unpacked(held) if isinstance(held, bytes) else {}
        after, kept = defend_update(
            self._defense,
            sent.before,
            sent.after,
            kept,
            num_samples=count_of(reply, self.count),
            parameters=names,
            seed=self.seed,
        )
        context.state[_STATE] = ConfigRecord({"state": packed(kept)})
        reply.content[sent.key] = array_record(after, reply.content.array_records[sent.key])
        return reply


def record(
    folder: str | Path,
    *,
    truth: bool = False,
    days: int = RETENTION,
    classes: Sequence[str] | None = None,
    pixels: Pixels | None = None,
    count: str | None = None,
) -> Record:
    """Return a mod that records each update: ``ClientApp(mods=[record("updates")])``.

    The mod watches the client's own training loop, so that the record states the steps taken. Put it first in the list:
    then it records what leaves the client, after all other mods.

    Args:
        folder: folder for the records; it is made if it does not exist. In it, ``{site}`` becomes ``site-`` and the
            client's ``partition-id`` or, if its node has none, ``node-`` and the node's number. A simulation needs it:
            its clients share one machine, and a folder of records is one site.
        truth: True also keeps pixels, labels and order in ``private-truth`` inside the folder, for this site only.
        days: days for which the truth may be kept; ``medpfl forget`` deletes it.
        classes: class names in label order; the records contain them.
        pixels: how images in [0, 1] enter the model, if the loader normalizes them, as in
            ``Pixels(mean=(0.5,), std=(0.25,))``; by default, it is inferred from their values.
        count: name of the metric with the number of examples; by default Flower's ``num-examples``.
    """
    return Record(folder, truth, days, classes, pixels, count)


def defend(defense: str | Defense, *, count: str | None = None, seed: int | None = None) -> Defend:
    """Return a mod that applies a defense to each update: ``ClientApp(mods=[defend("Clipping(1.0)")])``.

    Args:
        defense: a spec such as ``"Clipping(1.0) | GaussianNoise(0.01)"``, or a defense.
        count: name of the metric with the number of examples; by default Flower's ``num-examples``.
        seed: seed of the draws in every round, for tests only: noise that can be computed again protects nothing.

    Raises:
        InputError: the defense cannot act on a finished update.
    """
    return Defend(defense, count, seed)


def _parameters(state: dict[str, Tensor], model: nn.Module | None) -> set[str] | None:
    """Return the names of the trained parameters among numbered or named arrays; ``None`` if the model is unknown."""
    own = parameters_of(model)
    if model is None or own is None:
        return None
    if own <= state.keys():
        return own
    renamed = dict(zip(model.state_dict(), sorted(state, key=_number), strict=False))
    fits = named(state, model).keys() == renamed.keys()
    return {renamed[name] for name in own} if fits else None


def _number(name: str) -> int:
    return int(name) if name.isdecimal() else -1


def _inner_mods(call_next: Any) -> list[Any]:
    """Return the mods between this one and the training function, outermost first."""
    found = []
    while True:
        call_next = getattr(call_next, "inside", call_next)
        if _CHAIN not in getattr(call_next, "__qualname__", "") or not call_next.__closure__:
            break
        held = dict(zip(call_next.__code__.co_freevars, (c.cell_contents for c in call_next.__closure__), strict=True))
        if "_mod" not in held or "_ffn" not in held:
            break
        found.append(held["_mod"])
        call_next = held["_ffn"]
    return found


def _outer_mods(own: Any) -> list[Any]:
    """Return the mods that got the message before this one, and so change the reply after it."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        if _CHAIN in frame.f_code.co_qualname and frame.f_locals.get("_mod") not in (None, own):
            found.append(frame.f_locals["_mod"])
        frame = frame.f_back
    return found
