"""The typed training: what ``medpfl train`` and a YAML file say. Free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from medpfl.core.experiments import limits

__all__ = ["Training"]


class Training(BaseModel):
    """A federated training as strings and numbers. Field descriptions are the command line's help."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(default="samples", description="folder of class folders, .npz of MedMNIST, or 'samples'")
    model: str = Field(
        default="ConvNet(width=16, depth=3, norm='batch')",
        description="spec from 'medpfl list models', file.py:name or package.module:name",
    )
    weights: str | None = Field(default=None, description="weights file to start from")
    defense: list[str] = Field(default=[], description="spec; once for each part, or parts joined by |")
    validation: str | None = Field(
        default=None, description="images for the scores; unset: MedMNIST's own, else a part held out"
    )
    test: str | None = Field(default=None, description="images for the final scores; unset: MedMNIST's own, else none")
    holdout: int = Field(
        default=5, ge=2, le=limits.IMAGES, description="without validation images: one in so many is held out"
    )
    clients: int | None = Field(
        default=None, ge=1, le=limits.CLIENTS, description="number of clients; unset: as the partition says"
    )
    partition: str = Field(
        default="IID(clients=4)", description="IID(clients=...) or Dirichlet(alpha=..., clients=...)"
    )
    rounds: int = Field(default=20, ge=1, le=limits.ROUNDS, description="rounds of training")
    fraction: float = Field(default=1.0, gt=0, le=1, description="share of the clients that take part in a round")
    algorithm: Literal["FedSGD", "FedAvg"] = Field(default="FedAvg", description="one gradient, or local training")
    batch_size: int = Field(default=32, ge=1, le=limits.IMAGES, description="images of one gradient")
    local_images: int | None = Field(
        default=None, ge=1, le=limits.IMAGES, description="images of a client in a round; unset: all"
    )
    epochs: int = Field(default=1, ge=1, le=limits.EPOCHS, description="FedAvg: local epochs")
    learning_rate: float = Field(
        default=0.05, gt=0, le=limits.FACTOR, description="of the clients (FedAvg) or the server (FedSGD)"
    )
    decay: float = Field(default=1.0, gt=0, le=1, description="factor of the learning rate from round to round")
    momentum: float = Field(default=0.0, ge=0, le=limits.FACTOR, description="FedAvg: local momentum")
    weight_decay: float = Field(default=0.0, ge=0, le=limits.FACTOR, description="FedAvg: local weight decay")
    server_momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of the global model's steps")
    sampling: Literal["shuffle", "poisson"] = Field(
        default="shuffle", description="batches of a client; poisson is what differential privacy counts"
    )
    balance: bool = Field(default=False, description="clients draw their images evenly over their classes")
    augment: bool = Field(
        default=False, description="clients shift, turn, zoom and shade their images at random, anew in each round"
    )
    sends: list[Literal["num_samples", "buffers"]] = Field(
        default=["num_samples", "buffers"],
        description="what travels beside the update: num_samples, buffers; once for each, or 'nothing'",
    )
    mode: Literal["train", "eval"] = Field(default="train", description="of batch norm and dropout at the client")
    delta: float = Field(default=1e-5, gt=0, lt=1, description="of epsilon; well below one over a client's images")
    size: int = Field(default=32, ge=1, le=limits.SIDE, description="edge of the images in pixels")
    fit: Literal["crop", "squash"] = Field(default="crop", description="how an image becomes square")
    channels: Literal[1, 3] | None = Field(default=None, description="1 gray, 3 color; unset: as the images are")
    seed: int = Field(default=0, ge=0, le=limits.SEED, description="of every random draw")
    device: str = Field(default="cpu", description="cpu, cuda, cuda:1, ...")
