"""The public part of a round: what every client is told to do. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from medpfl.core.errors import InputError
from medpfl.core.spec import Part, shown

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

    algorithm: Literal["FedSGD", "FedAvg"] = shown("FedSGD")
    batch_size: int = shown(1)
    local_images: int | None = None
    epochs: int = 1
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    loss: Literal["cross_entropy", "dice"] = "cross_entropy"
    sampling: Literal["shuffle", "poisson"] = "shuffle"
    mode: Literal["train", "eval"] = shown("train")
    sends: tuple[str, ...] = ("num_samples", "buffers")

    def __post_init__(self) -> None:
        object.__setattr__(self, "sends", tuple(self.sends))
        if self.algorithm not in ("FedSGD", "FedAvg"):
            raise InputError(f"algorithm is '{self.algorithm}': choose FedSGD or FedAvg")
        if self.mode not in ("train", "eval"):
            raise InputError(f"mode is '{self.mode}': choose train or eval")
        if self.loss not in ("cross_entropy", "dice"):
            raise InputError(f"loss is '{self.loss}': choose cross_entropy or dice")
        if self.sampling not in ("shuffle", "poisson"):
            raise InputError(f"sampling is '{self.sampling}': choose shuffle or poisson")
        for name in ("batch_size", "local_images", "epochs"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"{name} is {value}: it must be a whole number, at least 1")
        if self.local_images is not None and self.local_images < self.batch_size:
            raise InputError(f"local_images is {self.local_images}, less than one batch of {self.batch_size}")
        if self.images % self.batch_size:
            raise InputError(f"local_images ({self.images}) must be a multiple of batch_size ({self.batch_size})")
        one_batch = self.sampling == "poisson" or self.images == self.batch_size
        if self.algorithm == "FedSGD" and (self.epochs != 1 or not one_batch):
            raise InputError("FedSGD sends one gradient of one batch: epochs and local_images need algorithm FedAvg")
        if not (0 < self.learning_rate < inf and 0 <= self.momentum < inf and 0 <= self.weight_decay < inf):
            raise InputError("learning_rate must be a number above 0, momentum and weight_decay at least 0")
        if unknown := set(self.sends) - {"num_samples", "buffers"}:
            raise InputError(f"sends names {sorted(unknown)}: choose from num_samples, buffers")

    @classmethod
    def among(cls, options: Mapping[str, Any]) -> tuple[Plan, dict[str, Any]]:
        """The plan that options describe, and those that are of something else.

        >>> Plan.among({"batch_size": 2, "seed": 5})
        (Plan(algorithm='FedSGD', batch_size=2, mode='train'), {'seed': 5})
        """
        own = cls.__dataclass_fields__
        plan = cls(**{k: v for k, v in options.items() if k in own})
        return plan, {k: v for k, v in options.items() if k not in own}

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
