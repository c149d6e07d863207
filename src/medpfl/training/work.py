"""The work of a training for an engine: a client's round, from the setup that all processes share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from torch import nn

from medpfl.core.roles import State
from medpfl.core.types import Weights
from medpfl.federated.ready import prepare
from medpfl.federated.training import Done, play_client
from medpfl.runs.environment import explained
from medpfl.training.setup import TrainingSetup

__all__ = ["ClientTask", "ClientWork"]


class ClientTask(NamedTuple):
    """A client's round.

    Attributes:
        number: the round.
        client: the client.
        weights: the global model's weights before the round.
        state: the defense's state at the client.
    """

    number: int
    client: int
    weights: Weights
    state: State


@dataclass(frozen=True, eq=False)
class ClientWork:
    """Plays clients' rounds.

    Attributes:
        setup: the training.
    """

    setup: TrainingSetup

    @cached_property
    def model(self) -> nn.Module:
        """The model, whose weights come with each task."""
        return prepare(self.setup.begin()[0], self.setup.plan)

    def __call__(self, task: ClientTask) -> Done:
        """Play a round."""
        with explained("a round cannot be run"):
            work = self.setup.work(task.client, task.number)
            return play_client(self.model, task.weights, work, self.setup.defense, task.state)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: the images, and the indices of each client's. Nothing else was derived."""
        splits = self.setup.splits
        mine = splits._replace(found=splits.found._replace(reader=None, place=""), judged={}, readers=())
        setup = replace(self.setup, splits=mine)
        vars(setup)["clients"] = self.setup.clients  # the property's cache, so that no process deals them again
        return {"setup": setup}
