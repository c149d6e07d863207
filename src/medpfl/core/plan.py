"""The public part of a round: what every client is told to do. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medpfl.core.errors import InputError
from medpfl.core.experiments import limits
from medpfl.core.experiments.limits import STEPS, check_numbers, shortened
from medpfl.core.experiments.options import check_options, option
from medpfl.core.spec import Part

__all__ = ["Plan"]


@dataclass(frozen=True, repr=False)
class Plan(Part):
    """How a client makes its update. Seeds, batch order and dropout masks are the client's own and not here.

    Attributes:
        algorithm: ``"FedSGD"`` sends one gradient, ``"FedAvg"`` the difference of weights after local steps
            (McMahan et al. 2017, arXiv:1602.05629).
        batch_size: images of one gradient.
        local_images: images that a client trains on in a round; ``None`` is one batch. FedAvg only,
            or FedSGD under Poisson sampling.
        epochs: passes over the local images. FedAvg only.
        learning_rate, momentum, weight_decay: of the local SGD, as in ``torch.optim.SGD``. FedAvg only.
        loss: ``"cross_entropy"``, averaged over the batch, and over the pixels of masks; or, of masks only,
            ``"dice"``, averaged over images and classes.
        sampling: ``"shuffle"`` deals the local images into batches anew in every epoch; ``"poisson"`` takes
            each into each step with probability batch_size / local_images, and divides the sum of the
            gradients by batch_size, whatever was drawn: a batch may be empty (Abadi et al. 2016,
            arXiv:1607.00133). What was drawn is not on the wire.
        mode: ``"train"`` or ``"eval"``, of batch norm and dropout.
        sends: what travels beside the update: ``"num_samples"``, ``"buffers"`` (batch-norm statistics; FL
            frameworks send both by default).

    Raises:
        InputError: a value out of its range.
    """

    algorithm: Literal["FedSGD", "FedAvg"] = option("FedSGD", "one gradient, or local training", shown=True)
    batch_size: int = option(1, "images of one gradient", least=1, most=limits.IMAGES, shown=True)
    local_images: int | None = option(
        None, "FedAvg or poisson: images of a client; unset: one batch", least=1, most=limits.IMAGES
    )
    epochs: int = option(1, "FedAvg: local epochs", least=1, most=limits.EPOCHS)
    learning_rate: float = option(0.1, "FedAvg: local learning rate", above=0, most=limits.FACTOR)
    momentum: float = option(0.0, "FedAvg: local momentum", least=0, most=limits.FACTOR)
    weight_decay: float = option(0.0, "FedAvg: local weight decay", least=0, most=limits.FACTOR)
    loss: Literal["cross_entropy", "dice"] = option(
        "cross_entropy", "of the client; dice is for models that give masks"
    )
    sampling: Literal["shuffle", "poisson"] = option(
        "shuffle", "of the local images into batches; poisson, as differential privacy is accounted"
    )
    mode: Literal["train", "eval"] = option("train", "of batch norm and dropout at the client", shown=True)
    sends: tuple[str, ...] = option(
        ("num_samples", "buffers"),
        "what travels beside the update: num_samples, buffers; once for each, or 'nothing'",
        kind=list[Literal["num_samples", "buffers"]],
    )

    def __post_init__(self) -> None:
        if isinstance(self.sends, str) or not isinstance(self.sends, Sequence):
            raise InputError(f"sends is {shortened(self.sends)}: give a list, of num_samples and buffers or of neither")
        object.__setattr__(self, "sends", tuple(self.sends))
        if unknown := [word for word in self.sends if word not in ("num_samples", "buffers")]:
            raise InputError(f"sends names {shortened(unknown)}: choose from num_samples, buffers")
        check_options(self)
        for name in ("learning_rate", "momentum", "weight_decay"):
            check_numbers(name, getattr(self, name))
        if self.local_images is not None and self.local_images < self.batch_size:
            raise InputError(f"local_images is {self.local_images}, less than one batch of {self.batch_size}")
        if self.images % self.batch_size:
            raise InputError(f"local_images ({self.images}) must be a multiple of batch_size ({self.batch_size})")
        one_batch = self.sampling == "poisson" or self.images == self.batch_size
        if self.algorithm == "FedSGD" and (self.epochs != 1 or not one_batch):
            raise InputError("FedSGD sends one gradient of one batch: epochs and local_images need algorithm FedAvg")
        if self.steps > STEPS:
            raise InputError(f"this plan takes {self.steps} steps for one update: at most {STEPS} are possible")

    @property
    def images(self) -> int:
        """Images behind one update."""
        return self.local_images or self.batch_size

    @property
    def rate(self) -> float:
        """Probability of an image to be in a step, under Poisson sampling."""
        return self.batch_size / self.images

    @property
    def steps(self) -> int:
        """Gradient steps behind one update."""
        if self.algorithm == "FedSGD":
            return 1
        return self.epochs * (self.images // self.batch_size)
