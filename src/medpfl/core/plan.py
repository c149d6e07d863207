"""The public part of a round: what every client is told to do. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import EPOCHS, FACTOR, IMAGES, STEPS, check_numbers, check_whole, shortened
from medpfl.core.spec import Part, shown

__all__ = ["Plan"]

_CHOICES = {
    "algorithm": ("FedSGD", "FedAvg"),
    "mode": ("train", "eval"),
    "loss": ("cross_entropy", "dice"),
    "sampling": ("shuffle", "poisson"),
}


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
        if isinstance(self.sends, str) or not isinstance(self.sends, Sequence):
            raise InputError(f"sends is {shortened(self.sends)}: give a list, of num_samples and buffers or of neither")
        object.__setattr__(self, "sends", tuple(self.sends))
        self._check_words()
        self._check_numbers()
        if self.local_images is not None and self.local_images < self.batch_size:
            raise InputError(f"local_images is {self.local_images}, less than one batch of {self.batch_size}")
        if self.images % self.batch_size:
            raise InputError(f"local_images ({self.images}) must be a multiple of batch_size ({self.batch_size})")
        one_batch = self.sampling == "poisson" or self.images == self.batch_size
        if self.algorithm == "FedSGD" and (self.epochs != 1 or not one_batch):
            raise InputError("FedSGD sends one gradient of one batch: epochs and local_images need algorithm FedAvg")
        if self.steps > STEPS:
            raise InputError(f"this plan takes {self.steps} steps for one update: at most {STEPS} are possible")

    def _check_words(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"{name} is {shortened(value)}: choose {' or '.join(choices)}")
        if unknown := [word for word in self.sends if word not in ("num_samples", "buffers")]:
            raise InputError(f"sends names {shortened(unknown)}: choose from num_samples, buffers")

    def _check_numbers(self) -> None:
        for name, most in (("batch_size", IMAGES), ("local_images", IMAGES), ("epochs", EPOCHS)):
            if name != "local_images" or self.local_images is not None:
                check_whole(name, getattr(self, name), 1, most)
        for name in ("learning_rate", "momentum", "weight_decay"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= FACTOR or (name == "learning_rate" and value == 0):
                raise InputError(
                    "learning_rate must be a number above 0, momentum and weight_decay at least 0, and none above "
                    f"{FACTOR:g}: {name} is {shortened(value)}"
                )
            check_numbers(name, value)

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
