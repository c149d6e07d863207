"""Option groups shared by commands and Python functions: images, criteria, and execution."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from medpfl.core.experiments import limits
from medpfl.core.experiments.options import OptionError, Options, again, option
from medpfl.core.verdicts import TOLERANCE

__all__ = ["UNLABELED", "About", "ClientImages", "Cohort", "Criteria", "Reading", "Run", "Victims"]

UNLABELED = ("no label", "other")
"""Classes of images without labels. All belong to the first; the second exists because a loss needs two."""


@dataclass(frozen=True, kw_only=True)
class Reading(Options):
    """Settings for reading images.

    Attributes:
        size: side length in pixels.
        fit: ``"crop"`` crops the central square, ``"squash"`` resizes both sides.
        channels: 1 for grayscale, 3 for color, ``None`` to keep the images' own.
    """

    size: int = option(32, "side length in pixels to which images are resized", least=1, most=limits.SIDE, told=False)
    fit: Literal["crop", "squash"] = option(
        "crop", "how to make images square: crop the center, or squash (resize both sides)", told=False
    )
    channels: Literal[1, 3] | None = option(
        None, "color channels: 1 (grayscale) or 3 (color); unset: as in the images", told=False
    )


@dataclass(frozen=True, kw_only=True)
class ClientImages(Reading):
    """Settings for reading images and distributing them among clients.

    Attributes:
        size, fit, channels: as in `Reading`.
        partition: a spec or a `medpfl.data.partition.Partition`. All images of a patient stay together if patients
            are known.
        clients: number of clients, overriding the partition's own. Secure aggregation sums the updates of all of them.
    """

    partition: object = option(
        "IID(clients=1)",
        "rule that distributes images among clients: IID(clients=...) or Dirichlet(alpha=..., clients=...)",
        kind=str,
        told=False,
    )
    clients: int | None = option(
        None,
        "number of clients, overriding the partition's own; secure aggregation sums over all of them",
        least=1,
        most=limits.CLIENTS,
        told=False,
    )


@dataclass(frozen=True, kw_only=True)
class Victims(ClientImages):
    """The target images of an audit.

    Attributes:
        images: number of target images, spread evenly over classes, in whole updates; ``None``: 32 (or as many as one
            update holds), or all if there are fewer.
        draws: number of random initializations of an untrained model; each is attacked with the same images.
        size, fit, channels, partition, clients: as in `ClientImages`.
    """

    images: int | None = option(
        None,
        f"number of images to attack, spread evenly over classes; unset: {limits.USUAL_IMAGES}, or all if there are "
        "fewer",
        least=1,
        most=limits.IMAGES,
    )
    draws: int = option(
        1,
        "number of random initializations of an untrained model, each attacked with the same images",
        least=1,
        most=limits.DRAWS,
    )


@dataclass(frozen=True, kw_only=True)
class Cohort(ClientImages):
    """All clients' training images, and the images that score the model.

    Attributes:
        validation, test: images that score the model; default: the splits of a MedMNIST file, if the data is one.
        holdout: without a validation set, one in `holdout` images is held out. All images of a patient stay together.
        size, fit, channels, partition, clients: as in `ClientImages`.
    """

    validation: object = option(
        None,
        "images that score the model every round; unset: MedMNIST's own split, or else a held-out part (--holdout)",
        kind=str | None,
        told=False,
    )
    test: object = option(
        None,
        "images that score the final model; unset: MedMNIST's own split, or else none",
        kind=str | None,
        told=False,
    )
    holdout: int = option(
        5,
        "hold out one in N images for validation if there are no validation images",
        least=2,
        most=limits.IMAGES,
        told=False,
    )
    partition: object = again(ClientImages, "partition", "IID(clients=4)")


@dataclass(frozen=True, kw_only=True)
class Criteria(Options):
    """Criteria of the verdict.

    Attributes:
        tolerance: share of images in (0, 1). "No leak found" needs 95 % confidence that a smaller share is
            reconstructed, and a smaller share re-identified beyond what guesses without the update explain.
        delta: delta at which the epsilon of differentially private defenses is reported.
        iterates: adds the score ``legacy_oracle_iterate``: the SSIM of the iterate nearest to the target image, chosen
            from the guess and up to 31 evenly spaced iterates of each restart. No attacker can make this choice; the
            paper's notebooks do.
        best_match: adds the scores ``best_ssim`` and ``best_ncc``: the highest score of the guess with any image of the
            data, with the own image's rank, and the same for noise. For many images this takes long.
    """

    tolerance: float = option(
        TOLERANCE,
        "largest share of images that may leak: 'no leak found' needs 95 % confidence that fewer images are "
        "reconstructed or re-identified",
        above=0,
        below=1,
        told=False,
    )
    delta: float = option(
        1e-5,
        "delta of the reported (epsilon, delta); should be well below 1 / (images per client)",
        above=0,
        below=1,
        told=False,
    )
    iterates: bool = option(
        False, "also score the iterate nearest to the target image (a choice that no attacker can make)"
    )
    best_match: bool = option(
        False, "also score each guess, and noise, with all images: the best score, and the rank of the target image"
    )


@dataclass(frozen=True, kw_only=True)
class About(Options):
    """The maker's own words on the pages of a run. They change no row, and stand on pages that may be shared.

    Attributes:
        title: title of the page.
        site: hospital or consortium that made the run.
        contact: whom to ask.
        alias: name for the data on the pages, in place of the kind of source.
    """

    title: str = option("", "title of the pages; like the next three, also on pages that may be shared", told=False)
    site: str = option("", "hospital or consortium that made the run, for the pages", told=False)
    contact: str = option("", "whom to ask about the run, for the pages", told=False)
    alias: str = option("", "name of the data set, for the pages", told=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, text in self.about().items():
            if len(text) > limits.LINE or not text.isprintable():
                raise OptionError(
                    name, f"{limits.shortened(text)}: it must be one line with at most {limits.LINE} characters"
                )

    def about(self) -> dict[str, str]:
        """Return the texts that were given."""
        return {one.name: text for one in fields(About) if (text := getattr(self, one.name))}


@dataclass(frozen=True, kw_only=True)
class Run(About):
    """Settings for executing a run.

    Attributes:
        title, site, contact, alias: as in `About`.
        seed: seed for all random draws.
        device: torch device, such as ``"cpu"`` or ``"cuda:1"``.
        memory: memory limit in GiB, by a fixed estimate, for victims attacked together. For attacks only.
        engine: where jobs run: ``"inline"`` in this process, ``"processes"`` in several of this machine, ``"ray"`` on
            the cluster at ``RAY_ADDRESS`` or on one that is started here; ``None``: processes if there are several
            workers.
        workers: number of jobs that run at the same time; ``None``: 1, or as many as there are cores if `engine` says
            so. Rows depend neither on it nor on `engine`.
        threads: number of torch threads for each job. Rows depend on it in their last digits.
        minutes: time for the searches of an audit that names no attack. A probe turns it once into a number of
            evaluations, which the run keeps, so that its rows do not depend on the machine's load. With 0, only
            analytic attacks run. For attacks only.
        isolate: True runs attacks in a separate process whose memory never holds a private image. By default, only
            attacks given as ``file.py:Name`` or ``package.module:Name`` run there. This is no sandbox: they run as the
            same user, who can read the same files. The rows are the same either way. For attacks only.
        out: run directory. With it, finished work survives a kill, and the same call continues where it stopped.
        force: discards what another experiment left in the run directory.
        numbers_only: True writes no target image and no reconstruction, only numbers. The run directory then has no
            private folder. For attacks only.
        progress: True shows what is done and how much time is left: in one line that changes on a terminal and in a
            notebook, elsewhere in a line every two seconds. ``None``: as True in an interactive session.
    """

    seed: int = option(0, "seed for all random draws", least=0, most=limits.SEED)
    device: str = option("cpu", "device for all computations: cpu, cuda, cuda:1, ...")
    memory: float = option(2.0, "memory limit in GiB for images attacked together", above=0, most=limits.MEMORY)
    engine: Literal["inline", "processes", "ray"] | None = option(
        None,
        "where jobs run: in this process (inline), in several (processes), or on a cluster (ray: RAY_ADDRESS, or one "
        "started here); unset: processes if --workers is above 1",
        told=False,
    )
    workers: int | None = option(
        None,
        "number of jobs that run at the same time; unset: 1, or with --engine as many as there are cores",
        least=1,
        most=limits.WORKERS,
        told=False,
    )
    threads: int = option(
        1,
        "torch threads for each job; several speed up large models and change the last digits of rows",
        least=1,
        most=limits.THREADS,
    )
    minutes: float = option(
        2.0,
        "without --attack: minutes for the searches of an audit, turned once into a number of evaluations; "
        "0: analytic attacks only",
        least=0,
        most=limits.MINUTES,
        told=False,
    )
    isolate: bool | None = option(
        None,
        "run attacks in a separate process that never holds a private image; not a sandbox: same user, same files; "
        "unset: only attacks given as file.py:Name or package.module:Name",
        told=False,
    )
    out: str | Path | None = option(
        None,
        "run directory for results; repeat the command to continue an interrupted run",
        kind=str | None,
        told=False,
    )
    force: bool = option(False, "discard results of another experiment in --out", told=False)
    numbers_only: bool = option(
        False, "write only numbers to --out: no image, no reconstruction, no private folder", told=False
    )
    progress: bool | None = option(None, "", told=False)

    @property
    def visible(self) -> bool:
        """True if progress is shown."""
        if self.progress is None:
            return hasattr(sys, "ps1") or "ipykernel" in sys.modules
        return self.progress
