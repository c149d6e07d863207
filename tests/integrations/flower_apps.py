"""A plain Flower app, and a grid that runs it in this process, without Ray and without a server."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn


def telemetry_off(monkeypatch: Any) -> None:
    for name, value in {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }.items():
        monkeypatch.setenv(name, value)


def make_model(kind: str = "norm") -> nn.Module:
    torch.manual_seed(3)
    norm = [nn.BatchNorm2d(4)] if kind == "norm" else []
    rectifier = nn.Sigmoid() if kind == "lenet" else nn.ReLU()
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), *norm, rectifier, nn.Flatten(), nn.Linear(4 * 16, 3))


def pictures(client: int, count: int = 18) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(client)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def train(model: nn.Module, client: int) -> None:
    """Train for two epochs on 18 images in batches of 4, shuffled, with momentum."""
    data = torch.utils.data.TensorDataset(*pictures(client))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for _ in range(2):
        for x, y in torch.utils.data.DataLoader(data, 4, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


def client_app(mods: list[Any], kind: str = "norm", function: Any = None) -> Any:
    """Return a client app of the Message API."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp(mods=mods)

    @app.train()
    def fit(message: Any, context: Any) -> Any:
        model = make_model(kind)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        (function or train)(model, int(context.node_config["partition-id"]))
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 18})}
        return Message(RecordDict(content), reply_to=message)

    return app


def local_grid(app: Any, nodes: int = 2) -> Any:
    """Return a grid that calls the app for one node after another."""
    from flwr.app import Context, Error, Message, RecordDict, UserConfig
    from flwr.serverapp import Grid
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity

    class LocalGrid(Grid):
        def __init__(self) -> None:
            self._run = Run.create_empty(run_id=1)
            TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
            self.replies: dict[str, Message] = {}
            self.contexts = {
                i + 1: Context(
                    1, i + 1, UserConfig({"partition-id": i, "num-partitions": nodes}), RecordDict(), UserConfig({})
                )
                for i in range(nodes)
            }

        def set_run(self, run: Any) -> None:
            self._run = run

        @property
        def run(self) -> Any:
            return self._run

        def create_message(
            self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
        ) -> Any:
            return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

        def get_node_ids(self) -> Iterable[int]:
            return list(self.contexts)

        def push_messages(self, messages: Iterable[Any]) -> Iterable[str]:
            ids = []
            for sent in messages:
                name = str(uuid4())
                sent.metadata.__dict__["_message_id"] = name
                message = deepcopy(sent)  # a wire copies
                try:
                    reply = app(deepcopy(message), self.contexts[message.metadata.dst_node_id])
                except Exception as error:
                    reply = Message(Error(code=0, reason=f"{type(error).__name__}: {error}"), reply_to=message)
                self.replies[name] = reply
                ids.append(name)
            return ids

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
            return [self.replies.pop(name) for name in list(message_ids) if name in self.replies]

        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> Iterable[Any]:
            return self.pull_messages(self.push_messages(messages))

    return LocalGrid()


def run(grid: Any, rounds: int = 2, kind: str = "norm", strategy: Any = None) -> Any:
    """Run federated averaging, and return its result."""
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import FedAvg

    plain = FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    chosen = plain if strategy is None else strategy(plain)
    return chosen.start(grid, ArrayRecord(make_model(kind).state_dict()), num_rounds=rounds)
