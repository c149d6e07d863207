"""The typed experiment: what the command line and a YAML file say. Free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from medpfl.core.experiments import limits
from medpfl.core.verdicts import TOLERANCE

__all__ = ["STANDARD", "Experiment"]

STANDARD = ("DLG", "iDLG", "CPL", "GradInv", "Posterior")
"""The attacks of an audit that names none. Those that are made for few models, its own among them, are added, and
for deep ones attacks with settings for these."""


class Experiment(BaseModel):
    """An audit as strings and numbers. Field descriptions are the command line's help."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(default="samples", description="folder of class folders, record of an update, or 'samples'")
    model: str = Field(
        default="LeNet('dlg')",
        description="spec from 'medpfl list models', file.py:name, package.module:name, or directory of a training",
    )
    weights: str | None = Field(default=None, description="weights file: safetensors, or a state dict of torch.save")
    attack: list[str] = Field(
        default=list(STANDARD),
        description="spec; once for each attack; as it is, those that are made for the model too",
    )
    defense: list[str] = Field(
        default=[], description="spec; once for each; parts joined by |, sweeps by geom() and lin()"
    )
    grant: list[str] = Field(
        default=[],
        description="what the adversary is told: labels, order, ...; defense: only attacks that know it",
    )
    naive: bool = Field(
        default=False,
        description="only attacks that are not told what a defense discloses of itself; else without and with",
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="delta of the reported (epsilon, delta)")
    tolerance: float = Field(
        default=TOLERANCE,
        gt=0,
        lt=1,
        description="share of images: 'no leak found' needs 95 % confidence that fewer are read back or recognized",
    )
    rounds: str | None = Field(
        default=None, description="with a training as --model: rounds whose models are audited, as 0,1,5"
    )
    truth: str | None = Field(default=None, description="for a record: folder of the images that it was made from")
    images: int = Field(default=32, ge=1, le=limits.IMAGES, description="images to attack, evenly over classes")
    batch_size: int = Field(default=1, ge=1, le=limits.IMAGES, description="images of one gradient")
    draws: int = Field(
        default=1, ge=1, le=limits.DRAWS, description="draws of untrained weights; each attacks the same images"
    )
    size: int = Field(default=32, ge=1, le=limits.SIDE, description="edge of the images in pixels")
    fit: Literal["crop", "squash"] = Field(default="crop", description="how an image becomes square")
    channels: Literal[1, 3] | None = Field(default=None, description="1 gray, 3 color; unset: as the images are")
    partition: str = Field(
        default="IID(clients=1)", description="IID(clients=...) or Dirichlet(alpha=..., clients=...)"
    )
    clients: int | None = Field(
        default=None,
        ge=1,
        le=limits.CLIENTS,
        description="clients of the partition; secure aggregation sums over all of them",
    )
    algorithm: Literal["FedSGD", "FedAvg"] = Field(default="FedSGD", description="one gradient, or local training")
    local_images: int | None = Field(
        default=None, ge=1, le=limits.IMAGES, description="FedAvg or poisson: images of a client; unset: one batch"
    )
    epochs: int = Field(default=1, ge=1, le=limits.EPOCHS, description="FedAvg: local epochs")
    learning_rate: float = Field(default=0.1, gt=0, le=limits.FACTOR, description="FedAvg: local learning rate")
    momentum: float = Field(default=0.0, ge=0, le=limits.FACTOR, description="FedAvg: local momentum")
    weight_decay: float = Field(default=0.0, ge=0, le=limits.FACTOR, description="FedAvg: local weight decay")
    loss: Literal["cross_entropy", "dice"] = Field(
        default="cross_entropy", description="of the client; dice is for models that give masks"
    )
    sends: list[Literal["num_samples", "buffers"]] = Field(
        default=["num_samples", "buffers"],
        description="what travels beside the update: num_samples, buffers; once for each, or 'nothing'",
    )
    sampling: Literal["shuffle", "poisson"] = Field(
        default="shuffle", description="of the local images into batches; poisson, as DPSGD is accounted"
    )
    mode: Literal["train", "eval"] = Field(default="train", description="of batch norm and dropout at the client")
    seed: int = Field(default=0, ge=0, le=limits.SEED, description="of every random draw")
    memory: float = Field(default=2.0, gt=0, le=limits.MEMORY, description="GiB that a stack of victims may take")
    device: str = Field(default="cpu", description="cpu, cuda, cuda:1, ...")
    iterates: bool = Field(
        default=False, description="score the iterate nearest to the truth too, which no attacker can pick"
    )
    isolate: bool | None = Field(
        default=None,
        description="run attacks in a process that no private image enters; no sandbox: same user, same files; "
        "unset: those given as file.py:Name or package.module:Name",
    )
