"""A grid for Flower's server that records every reply to a training message."""

# pyright: reportMissingImports=false
from __future__ import annotations

import io
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from medpfl.core.messages import say
from medpfl.core.plan import Plan
from medpfl.core.records.masked import Masked
from medpfl.core.records.origin import Pixels, Source
from medpfl.core.records.steps import UNSTATED, Steps
from medpfl.integrations.flower.messages import count_of, is_training, round_of, state_in, trained_weights
from medpfl.recording.record import UpdateFacts, keep, make_record, origin_of

__all__ = ["RecordingGrid"]

_SECAGG, _MASKED = "secaggplus_configs", "masked_params"


@dataclass(frozen=True, eq=False)
class _Asked:
    """One request: its weights by the key of their array record, its round, and its node."""

    weights: dict[str, dict[str, Tensor]]
    round: int | None
    node: int


class RecordingGrid(Grid):
    """A grid that passes all messages on, and records what the server sees of each client.

    It works with every strategy, the wrappers for differential privacy, and SecAgg+: a strategy calls it as any other
    grid. Records go into ``site-1``, ``site-2``, ... inside the folder, numbered in the order of the first replies. A
    masked message of SecAgg+ is written as a `Masked` file, not as an update.

    Args:
        grid: the grid that Flower gives to the server app.
        folder: folder for the records.
        plan: the clients' plan, if the server knows it. Without it, a record states that the steps are unknown.
        image_shape: shape (C, H, W) of the clients' images, if known.
        classes: class names in label order, if known.
        count: name of the metric with the number of examples; by default Flower's ``num-examples``.
        pixels: how images in [0, 1] enter the model, if the clients' loaders normalize them.
    """

    def __init__(
        self,
        grid: Grid,
        folder: str | Path,
        plan: Plan | Steps | None = None,
        image_shape: tuple[int, ...] | None = None,
        classes: tuple[str, ...] | None = None,
        count: str | None = None,
        pixels: Pixels | None = None,
    ) -> None:
        self._grid, self.folder, self.plan = grid, Path(folder), plan
        if plan is None:
            say(f"note: the server's records will have no training steps, so no audit can attack them: {UNSTATED}")
        self.image_shape, self.classes, self.count, self.pixels = image_shape, classes, count, pixels
        self._pushed: dict[str, _Asked] = {}
        self._sites: dict[int, str] = {}

    @property
    def run(self) -> Any:
        """The run's facts, as Flower states them."""
        return self._grid.run

    def set_run(self, run: Any) -> None:
        """Set the run."""
        self._grid.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes' numbers."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """Return the nodes' facts."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and remember the weights in those that ask for training."""
        messages = list(messages)
        asked = _asked(messages)
        ids = list(self._grid.push_messages(messages))
        self._pushed |= {name: one for name, one in zip(ids, asked, strict=False) if one is not None}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies, and record them."""
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            self._take(reply, self._pushed.pop(reply.metadata.reply_to_message_id, None))
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages, wait for the replies, and record them."""
        messages = list(messages)
        asked = {one.node: one for one in _asked(messages) if one is not None}
        replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        for reply in replies:
            self._take(reply, asked.get(reply.metadata.src_node_id))
        return replies

    def _take(self, reply: Message, asked: _Asked | None) -> None:
        """Record a reply. One that cannot be recorded is a note: it does not stop the federation."""
        if asked is None or reply.has_error():
            return
        place = self.folder / self._sites.setdefault(reply.metadata.src_node_id, f"site-{len(self._sites) + 1}")
        try:
            source = origin_of("Flower", ["flwr"], asked.round, "server")
            if _SECAGG in reply.content.config_records:
                self._write_masked(reply, asked, source, place)
            else:
                self._write(reply, asked, source, place)
        except Exception as error:  # a federation goes on without its record
            say(f"note: the reply of {place.name} was not recorded: {error}")

    def _write(self, reply: Message, asked: _Asked, source: Source, place: Path) -> None:
        sent = trained_weights(asked.weights, reply)
        count = count_of(reply, self.count)
        about = {"image_shape": self.image_shape, "classes": self.classes, "pixels": self.pixels}
        facts = UpdateFacts(num_samples=count, source=source, **about)
        keep(place, make_record(sent.before, sent.after, self.plan or Steps.unknown(count), facts=facts))

    def _write_masked(self, reply: Message, asked: _Asked, source: Source, place: Path) -> None:
        told = reply.content.config_records[_SECAGG].get(_MASKED)
        if not isinstance(told, list):
            return  # a stage of the protocol without vectors
        vectors = [np.load(io.BytesIO(one), allow_pickle=False) for one in told if isinstance(one, bytes)]
        weights = next(iter(asked.weights.values()), {})
        made = Masked(tuple(map(torch.from_numpy, vectors)), weights, count_of(reply, self.count), source)
        place.mkdir(parents=True, exist_ok=True)
        number = 0 if source.round is None else source.round
        made.save(place / f"masked-{number:04d}-{secrets.token_hex(4)}.safetensors")


def _asked(messages: list[Message]) -> list[_Asked | None]:
    """Return what each message asks for; ``None`` if not for training. Nodes that got the same record share tensors."""
    states: dict[int, dict[str, Tensor]] = {}
    found: list[_Asked | None] = []
    for message in messages:
        try:
            found.append(_asked_by(message, states) if is_training(message) else None)
        except Exception as error:  # a federation goes on without its record
            say(f"note: the reply to this message will not be recorded: {error}")
            found.append(None)
    return found


def _asked_by(message: Message, states: dict[int, dict[str, Tensor]]) -> _Asked:
    records = message.content.array_records
    for record in records.values():
        if id(record) not in states:
            states[id(record)] = state_in(record)
    weights = {key: states[id(record)] for key, record in records.items()}
    return _Asked(weights, round_of(message), message.metadata.dst_node_id)
