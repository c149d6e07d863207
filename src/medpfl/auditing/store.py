"""Rows and pictures of finished jobs, stored in the run directory and safe against a kill at any moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import pad

from medpfl.core.atomic_files import PRIVATE, write
from medpfl.core.errors import InputError
from medpfl.core.messages import PRIVATE_FOLDER, SHARE_FOLDER
from medpfl.core.types import Finding
from medpfl.runs.cloak import Cloak
from medpfl.runs.directory import Kind, RunDirectory, append, known_in, lines, private_folder, read_lines
from medpfl.runs.jobs import JobKey, job_of

__all__ = ["AUDIT", "ROWS", "Store", "check_claim", "claimed", "read_rows", "stored", "to_bytes"]

ROWS = f"{SHARE_FOLDER}/findings.jsonl"
"""Path to the rows in a run directory."""

_SHARED = ("findings.jsonl", "summary.json", "report.html", "report.pdf")
_PRIVATE = ("report-with-images.html", "report-with-images.pdf", "images/*.safetensors", "pictures/*.png")
AUDIT = Kind("audit", 4, _SHARED, _PRIVATE)
"""Since format 3, a row names the image nearest to its guess; since format 4, there are two folders."""

_PLAIN = Cloak(None)


class Store:
    """Rows by job, in the experiment's order; on disk if there is a directory, else in memory.

    ``run.json`` identifies the experiment, ``share/findings.jsonl`` holds the rows, and ``private/images/`` holds
    target images and guesses (mode 0600). A row counts only if its whole job is there.

    Args:
        directory: the run directory; ``None`` keeps everything in memory.
        sizes: number of rows for each job, in the experiment's order.
        cloak: replacement of private names in all written files. Methods take jobs under their original names,
            and return rows as they were written.
        numbers_only: True writes no pictures.
    """

    def __init__(
        self,
        directory: RunDirectory | None,
        sizes: dict[JobKey, int],
        cloak: Cloak = _PLAIN,
        numbers_only: bool = False,
    ) -> None:
        self.directory, self.cloak, self.numbers_only = directory, cloak, numbers_only
        self.out = out = None if directory is None else directory.path
        self.sizes = sizes = {cloak(job): size for job, size in sizes.items()}
        self._rows = {} if out is None else _whole_jobs(out / ROWS, sizes)
        self._split = {} if out is None else _split_in(known_in(out))
        self._pictures: dict[JobKey, tuple[Tensor, Tensor]] = {}

    def pictured(self, job: JobKey) -> bool:
        """Return True if a job's pictures are there."""
        job = self.cloak(job)
        return job in self._pictures or (self.out is not None and _pictures(self.out, job).is_file())

    def tidy(self) -> None:
        """Drop jobs that are incomplete or lack pictures, in the file too. Numbers alone need no pictures."""
        assert self.out is not None
        self._rows = {job: rows for job, rows in self._rows.items() if self.numbers_only or self.pictured(job)}
        write(self.out / ROWS, lines(row.to_dict() for row in self.rows()))

    def __contains__(self, job: JobKey) -> bool:
        return self.cloak(job) in self._rows

    def rows(self) -> list[Finding]:
        """Return all rows, in the experiment's order."""
        return [row for job in self.sizes for row in self._rows.get(job, ())]

    def add(self, job: JobKey, rows: Sequence[Finding], pictures: tuple[Tensor, ...]) -> None:
        """Store a finished job: its rows, and its target images and guesses, both uint8 (rows, C, H, W)."""
        job, rows = self.cloak(job), self.cloak(list(rows))
        if not self.numbers_only:
            truths, guesses = pictures
            self._keep(job, {"truths": truths, "guesses": guesses})
        if self.out is not None:
            append(self.out / ROWS, [row.to_dict() for row in rows])  # after the pictures: no row may lack its own
        self._rows[job] = rows

    def split(self, job: JobKey, most: int) -> None:
        """Note that at most `most` victims of a job are attacked together, which its rows depend on."""
        self._split[self.cloak(job)] = most
        if self.directory is not None:
            self.directory.note(split=[[*key, count] for key, count in self._split.items()])

    def together(self, job: JobKey, victims: int) -> int:
        """Return how many of a job's victims are attacked together: all, or as many as `split` noted."""
        return min(victims, self._split.get(self.cloak(job), victims))

    def check_whole(self) -> None:
        """Raise `InputError` if a stack was split, whose rows differ from those of a whole one."""
        if self._split:
            raise InputError(
                f"'{self.out}' holds rows of a stack of victims that ran out of memory and was split: use another --out"
            )

    def _keep(self, job: JobKey, pictures: dict[str, Tensor]) -> None:
        if self.out is None:
            self._pictures[job] = (pictures["truths"], pictures["guesses"])
        else:
            write(private_folder(self.out, "images") / job.file_name(), save(pictures), PRIVATE)

    def note(self, **settings: Any) -> None:
        """Add settings to ``run.json``."""
        if self.directory is not None:
            self.directory.note(**self.cloak(settings))

    def picture(self, row: Finding) -> tuple[np.ndarray, np.ndarray]:
        """Return a row's target image and guess as uint8 arrays, (H, W) or (H, W, 3)."""
        job = job_of(row)
        if job not in self._pictures:
            assert self.out is not None
            loaded = load_file(_pictures(self.out, job))
            self._pictures = {job: (loaded["truths"], loaded["guesses"])}
        truths, guesses = self._pictures[job]
        place = self._rows[job].index(row)
        return _for_screen(truths[place]), _for_screen(guesses[place])


@contextlib.contextmanager
def claimed(
    out: Path | None,
    identity: dict[str, Any],
    sizes: dict[JobKey, int],
    force: bool,
    cloak: Cloak = _PLAIN,
    numbers_only: bool = False,
) -> Iterator[Store]:
    """Yield an audit's store; until the block ends, no other audit can use the directory.

    Args:
        out: path to the run directory; ``None`` keeps everything in memory.
        identity: everything that determines the rows.
        sizes, cloak, numbers_only: as in `Store`.
        force: True discards another experiment's files in the directory.

    Raises:
        InputError: the directory is in use, `RunDirectory.claim` refuses it, or it holds pictures although
            `numbers_only`, or the reverse.
    """
    if out is None:
        yield Store(None, sizes, numbers_only=numbers_only)
        return
    directory = RunDirectory(out, AUDIT, identity)
    with directory.locked():
        directory.claim(force)
        _check_pictures(out, numbers_only)
        store = Store(directory, sizes, cloak, numbers_only)
        if numbers_only:
            store.note(numbers_only=True)
        store.tidy()
        yield store


def check_claim(directory: RunDirectory, force: bool, numbers_only: bool) -> bool:
    """Return True if `claimed` would continue the audit in a directory; nothing is written.

    Raises:
        InputError: as in `claimed`.
    """
    continued = directory.check(force)
    if continued or not force:
        _check_pictures(directory.path, numbers_only)
    return continued


def _check_pictures(out: Path, numbers_only: bool) -> None:
    """Check that a run with pictures is not continued as one without, which would leave them there, or the reverse.

    Raises:
        InputError: it would be.
    """
    held = out / PRIVATE_FOLDER
    if numbers_only and held.is_dir() and any(held.rglob("*")):
        raise InputError(
            f"'{held}' holds images of a run without --numbers-only: name another --out, or delete that folder"
        )
    if not numbers_only and known_in(out).get("numbers_only") is True:
        raise InputError(f"'{out}' holds a run with --numbers-only: give that option again, or name another --out")


def _pictures(out: Path, job: JobKey) -> Path:
    return out / PRIVATE_FOLDER / "images" / job.file_name()


def read_rows(path: Path, whole: bool = False) -> Iterator[Finding]:
    """Yield the rows in ``findings.jsonl``, without a truncated last line; `whole` as in `read_lines`."""
    return read_lines(path, Finding.from_dict, whole)


def stored(out: Path) -> Store:
    """Return a store for reading a run directory, whether it is complete or not."""
    sizes: dict[JobKey, int] = {}
    for row in read_rows(out / ROWS):
        sizes[job_of(row)] = sizes.get(job_of(row), 0) + 1
    return Store(RunDirectory(out, AUDIT), sizes)


def _whole_jobs(path: Path, sizes: dict[JobKey, int]) -> dict[JobKey, list[Finding]]:
    rows: dict[JobKey, list[Finding]] = {}
    for row in read_rows(path):
        rows.setdefault(job_of(row), []).append(row)
    return {job: found for job, found in rows.items() if len(found) == sizes.get(job)}


def _split_in(known: dict[str, Any]) -> dict[JobKey, int]:
    """Return what `Store.split` noted in ``run.json``; entries that it cannot have written are left out."""
    found, noted = {}, known.get("split")
    for entry in noted if isinstance(noted, list) else ():
        if isinstance(entry, list) and list(map(type, entry)) == [str, int, str, str, int, bool, int] and entry[-1] > 0:
            found[JobKey(*entry[:-1])] = entry[-1]
    return found


def to_bytes(images: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8; values that are not finite, or beyond that range, are cut to it."""
    return (images.detach().cpu().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).contiguous()


def _for_screen(image: Tensor) -> np.ndarray:
    image = image if image.ndim == 3 else _slices(image)
    array = image.permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[2] == 1 else array


def _slices(volume: Tensor) -> Tensor:
    """Tile four slices of a volume (C, D, H, W) along its depth, with white lines between: (C, 2 H + 1, 2 W + 1)."""
    depth = volume.shape[1]
    one, two, three, four = (pad(volume[:, (2 * i + 1) * depth // 8], (0, 1, 0, 1), value=255) for i in range(4))
    return torch.cat([torch.cat([one, two], -1), torch.cat([three, four], -1)], -2)[:, :-1, :-1]
