"""The plan: the public settings of local training. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medpfl.core.errors import InputError
from medpfl.core.experiments import limits
from medpfl.core.experiments.limits import STEPS, check_numbers, shortened
from medpfl.core.experiments.options import check_options, option
from medpfl.core.spec import Part

__all__ = ["Plan"]


@dataclass(frozen=True, repr=False)
class Plan(Part):
    """The public settings of local training. The client's seeds, batch order and dropout masks are private, not here.

    Attributes:
        algorithm: ``"FedSGD"`` sends one gradient, ``"FedAvg"`` the weight difference after local steps
            (McMahan et al. 2017, arXiv:1602.05629).
        batch_size: images per gradient.
        local_images: images that a client trains on in a round; ``None`` means one batch. FedAvg only,
            or FedSGD under Poisson sampling. The last batch of an epoch may be smaller, as in a ``DataLoader``.
        epochs: passes over the local images. FedAvg only.
        learning_rate, momentum, weight_decay, dampening, nesterov: settings of local SGD, as in ``torch.optim.SGD``.
            FedAvg only.
        loss: ``"cross_entropy"``, averaged over the batch and, for masks, over pixels; or, for masks only,
            ``"dice"``, averaged over images and classes.
        label_smoothing: share of a label that is spread over all classes, as in ``torch.nn.CrossEntropyLoss``.
        sampling: ``"shuffle"`` splits the local images into batches in a new random order every epoch. ``"poisson"``
            includes each image in each step with probability batch_size / local_images, and divides the sum of the
            gradients by batch_size regardless of the number drawn; a batch may be empty (Abadi et al. 2016,
            arXiv:1607.00133). The server does not learn which images were drawn.
        mode: ``"train"`` or ``"eval"`` for batch norm and dropout.
        sends: what clients send besides the update: ``"num_samples"``, ``"buffers"`` (batch-norm statistics). FL
            frameworks send both by default.

    Raises:
        InputError: a value is out of its range.
    """

    algorithm: Literal["FedSGD", "FedAvg"] = option(
        "FedSGD",
        "what clients send: one gradient (FedSGD), or the weight difference after local training (FedAvg)",
        shown=True,
    )
    batch_size: int = option(1, "number of images per gradient", least=1, most=limits.IMAGES, shown=True)
    local_images: int | None = option(
        None,
        "FedAvg or poisson: number of images that a client trains on; unset: one batch",
        least=1,
        most=limits.IMAGES,
    )
    epochs: int = option(1, "FedAvg: number of local epochs", least=1, most=limits.EPOCHS)
    learning_rate: float = option(0.01, "FedAvg: local learning rate", above=0, most=limits.FACTOR)
    momentum: float = option(0.0, "FedAvg: local momentum", least=0, most=limits.FACTOR)
    weight_decay: float = option(0.0, "FedAvg: local weight decay", least=0, most=limits.FACTOR)
    dampening: float = option(0.0, "FedAvg: dampening of local momentum", least=0, most=1)
    nesterov: bool = option(False, "FedAvg: Nesterov's form of local momentum")
    loss: Literal["cross_entropy", "dice"] = option(
        "cross_entropy", "the clients' training loss; dice needs a model that predicts masks"
    )
    label_smoothing: float = option(
        0.0, "cross_entropy: share of a label that is spread over all classes", least=0, below=1
    )
    sampling: Literal["shuffle", "poisson"] = option(
        "shuffle", "how clients form batches: shuffle, or poisson (as assumed in differential-privacy accounting)"
    )
    mode: Literal["train", "eval"] = option(
        "train", "mode of batch norm and dropout while the client computes its update", shown=True
    )
    sends: tuple[str, ...] = option(
        ("num_samples", "buffers"),
        "what clients send besides the update: num_samples, buffers (repeat the option), or 'nothing'",
        kind=list[Literal["num_samples", "buffers"]],
    )

    def __post_init__(self) -> None:
        if isinstance(self.sends, str) or not isinstance(self.sends, Sequence):
            raise InputError(f"sends is {shortened(self.sends)}: give a list with num_samples, buffers, both or none")
        object.__setattr__(self, "sends", tuple(self.sends))
        if unknown := [word for word in self.sends if word not in ("num_samples", "buffers")]:
            raise InputError(f"sends contains {shortened(unknown)}: choose from num_samples, buffers")
        check_options(self)
        for name in ("learning_rate", "momentum", "weight_decay", "dampening", "label_smoothing"):
            check_numbers(name, getattr(self, name))
        if self.local_images is not None and self.local_images < self.batch_size:
            raise InputError(f"local_images is {self.local_images}: it must be at least batch_size ({self.batch_size})")
        if self.sampling == "poisson" and self.images % self.batch_size:
            raise InputError(
                f"local_images ({self.images}) must be a multiple of batch_size ({self.batch_size}) under poisson"
            )
        if self.nesterov and (not self.momentum or self.dampening):
            raise InputError("nesterov needs a momentum above 0 and no dampening, as in torch.optim.SGD")
        if self.loss == "dice" and self.label_smoothing:
            raise InputError("label_smoothing belongs to the loss cross_entropy: leave it out with dice")
        one_batch = self.sampling == "poisson" or self.images == self.batch_size
        if self.algorithm == "FedSGD" and (self.epochs != 1 or not one_batch):
            raise InputError("FedSGD sends one gradient of one batch: epochs and local_images need algorithm FedAvg")
        if self.steps > STEPS:
            raise InputError(f"this plan takes {self.steps} local steps per update: at most {STEPS} are allowed")

    @property
    def images(self) -> int:
        """Number of images in one update."""
        return self.local_images or self.batch_size

    @property
    def rate(self) -> float:
        """Probability that an image is in a step, under Poisson sampling."""
        return self.batch_size / self.images

    @property
    def steps(self) -> int:
        """Number of gradient steps in one update."""
        if self.algorithm == "FedSGD":
            return 1
        return self.epochs * self.batches

    @property
    def batches(self) -> int:
        """Number of batches in one epoch; the last one may be smaller."""
        return -(-self.images // self.batch_size)

    def size_of(self, step: int) -> int:
        """Return the number of images in a step, counted from 0; under Poisson sampling, the expected number."""
        place = step % self.batches
        return min(self.batch_size, self.images - place * self.batch_size)

    def gradient_weights(self) -> list[float]:
        """Return each step's coefficient: how often its gradient enters the weight difference, without learning rate.

        In T steps of SGD with momentum m, the gradient of step s (from 0) has weight (1 - m^(T - s)) / (1 - m).
        Dampening scales the gradient of every step but the first; Nesterov's form adds one step's look-ahead.
        """
        weights, reach = [], 0.0
        for step in reversed(range(self.steps)):
            reach = 1.0 + self.momentum * reach
            damped = 1.0 - self.dampening if step and self.momentum else 1.0
            weights.append(1.0 + self.momentum * reach if self.nesterov else damped * reach)
        return weights[::-1]

    def kept_share(self) -> float:
        """Return the factor by which weight decay alone would have scaled the weights after all steps.

        Local SGD is linear in the weights and the gradients. So the final weights are this factor times the first ones,
        minus a sum of the steps' gradients. Without weight decay, the factor is 1.
        """
        weight, velocity = 1.0, 0.0
        for step in range(self.steps if self.algorithm == "FedAvg" else 0):
            weight, velocity = self.stepped(step, weight, 0.0, velocity)
        return weight

    def stepped(self, step: int, weight: Any, slope: Any, velocity: Any) -> tuple[Any, Any]:
        """Return a weight and its velocity after one step of local SGD, as in ``torch.optim.SGD``.

        Args:
            step: number of steps before this one.
            weight, slope, velocity: numbers or tensors of one shape; the velocity does not count in the first step.
        """
        push = slope + self.weight_decay * weight
        damped = 1 - self.dampening if self.momentum else 1  # torch dampens momentum only
        velocity = push if step == 0 else self.momentum * velocity + damped * push
        move = push + self.momentum * velocity if self.nesterov else velocity
        return weight - self.learning_rate * move, velocity
