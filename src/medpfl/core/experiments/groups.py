"""Groups of options that the doors share: whose images, what is measured, and how a run is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medpfl.core.experiments import limits
from medpfl.core.experiments.options import Options, again, option
from medpfl.core.verdicts import TOLERANCE

__all__ = ["ClientImages", "Cohort", "Criteria", "Reading", "Run", "Victims"]


@dataclass(frozen=True, kw_only=True)
class Reading(Options):
    """How images are read.

    Attributes:
        size: edge in pixels.
        fit: ``"crop"`` cuts the middle square out, ``"squash"`` resizes both sides.
        channels: 1 gray, 3 color; ``None``: as the images are.
    """

    size: int = option(32, "edge of the images in pixels", least=1, most=limits.SIDE, told=False)
    fit: Literal["crop", "squash"] = option("crop", "how an image becomes square", told=False)
    channels: Literal[1, 3] | None = option(None, "1 gray, 3 color; unset: as the images are", told=False)


@dataclass(frozen=True, kw_only=True)
class ClientImages(Reading):
    """How images are read, and dealt to clients.

    Attributes:
        size, fit, channels: as in `Reading`.
        partition: a spec or a `medpfl.data.partition.Partition`; patients stay whole where they are known.
        clients: in place of the partition's own number; secure aggregation sums the updates of all of them.
    """

    partition: object = option(
        "IID(clients=1)", "IID(clients=...) or Dirichlet(alpha=..., clients=...)", kind=str, told=False
    )
    clients: int | None = option(
        None,
        "clients of the partition, in place of its own number; secure aggregation sums over all of them",
        least=1,
        most=limits.CLIENTS,
        told=False,
    )


@dataclass(frozen=True, kw_only=True)
class Victims(ClientImages):
    """The images that an audit attacks.

    Attributes:
        images: how many, evenly over classes, in whole updates.
        draws: of untrained weights; each attacks the same images.
        size, fit, channels, partition, clients: as in `ClientImages`.
    """

    images: int = option(32, "images to attack, evenly over classes", least=1, most=limits.IMAGES)
    draws: int = option(1, "draws of untrained weights; each attacks the same images", least=1, most=limits.DRAWS)


@dataclass(frozen=True, kw_only=True)
class Cohort(ClientImages):
    """The images of a training, of all its clients, and those that judge the model.

    Attributes:
        validation, test: images to judge the model by; MedMNIST's own splits, if its file is the data.
        holdout: one in so many images is held out where there is no validation set, patients whole.
        size, fit, channels, partition, clients: as in `ClientImages`.
    """

    validation: object = option(
        None, "images for the scores; unset: MedMNIST's own, else a part held out", kind=str | None, told=False
    )
    test: object = option(
        None, "images for the final scores; unset: MedMNIST's own, else none", kind=str | None, told=False
    )
    holdout: int = option(
        5, "without validation images: one in so many is held out", least=2, most=limits.IMAGES, told=False
    )
    partition: object = again(ClientImages, "partition", "IID(clients=4)")


@dataclass(frozen=True, kw_only=True)
class Criteria(Options):
    """What the verdict is measured by.

    Attributes:
        tolerance: share of images in (0, 1). "No leak found" needs 95 % confidence that fewer than this share are read
            back, and that fewer are recognized beyond what guesses without the update explain.
        delta: probability of failure at which the epsilon of differentially private defenses is stated.
        iterates: adds the score ``legacy_oracle_iterate``: SSIM of the iterate nearest to the truth, among up to 31 of
            each start, evenly spaced, and the guess. No attacker can pick it; the paper's notebooks do.
    """

    tolerance: float = option(
        TOLERANCE,
        "share of images: 'no leak found' needs 95 % confidence that fewer are read back or recognized",
        above=0,
        below=1,
        told=False,
    )
    delta: float = option(
        1e-5,
        "delta of the reported (epsilon, delta); well below one over a client's images",
        above=0,
        below=1,
        told=False,
    )
    iterates: bool = option(False, "score the iterate nearest to the truth too, which no attacker can pick")


@dataclass(frozen=True, kw_only=True)
class Run(Options):
    """How a run is carried out.

    Attributes:
        seed: of every random draw.
        device: of the computation.
        memory: GiB that a stack of victims may take, by a fixed estimate. Of attacks only.
        isolate: whether attacks run in a process of their own, which never has a private image in its memory; by
            default, those that are given as ``file.py:Name`` or ``package.module:Name`` do. It is no sandbox: they
            run as the same user, who can read the same files. Rows are equal either way. Of attacks only.
        out: the run directory; with it, finished work survives a kill, and the same call continues where it stopped.
        force: discards what another experiment left in it.
        progress: shows a progress bar on the terminal, or prints a line now and then where there is none.
    """

    seed: int = option(0, "of every random draw", least=0, most=limits.SEED)
    device: str = option("cpu", "cpu, cuda, cuda:1, ...")
    memory: float = option(2.0, "GiB that a stack of victims may take", above=0, most=limits.MEMORY)
    isolate: bool | None = option(
        None,
        "run attacks in a process that no private image enters; no sandbox: same user, same files; "
        "unset: those given as file.py:Name or package.module:Name",
        told=False,
    )
    out: str | Path | None = option(None, "run directory; the same command continues it", kind=str | None, told=False)
    force: bool = option(False, "discard what another experiment left in --out", told=False)
    progress: bool = option(False, "", told=False)
