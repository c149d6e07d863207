"""A training's directory, with a row and a checkpoint for each finished round; a kill at any moment loses neither."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medpfl.core.atomic_files import write
from medpfl.core.messages import SHARE_FOLDER
from medpfl.core.rounds import Round
from medpfl.inputs.checkpoint import STATE, WEIGHTS, round_folder
from medpfl.runs.cloak import Cloak
from medpfl.runs.directory import Kind, RunDirectory, append, known_in, lines, read_lines
from medpfl.runs.identity import Identity

__all__ = ["ROWS", "TRAINING", "TrainingStore", "read_rounds", "training_in", "whole_rounds"]

ROWS = f"{SHARE_FOLDER}/rounds.jsonl"
"""Path of the rows in a training's directory."""

_CHECKPOINTS = (f"round-*/{WEIGHTS}", f"round-*/{STATE}")
TRAINING = Kind("training", 2, ("rounds.jsonl", "summary.json", "report.html", "report.pdf"), _CHECKPOINTS)
"""Since format 2, files that may be shared have their own folder."""


class TrainingStore:
    """The rows of a training's rounds, on disk or in memory.

    ``run.json`` identifies the training, ``share/rounds.jsonl`` holds the rows, ``round-N/`` the checkpoints. A row
    counts only if its checkpoint and all earlier rows exist.

    Args:
        directory: the run directory; ``None`` keeps the rows in memory only.
        cloak: replaces paths in written texts.
    """

    def __init__(self, directory: RunDirectory | None, cloak: Cloak | None = None) -> None:
        self.directory, self.cloak = directory, cloak or Cloak(None)
        self.out = out = None if directory is None else directory.path
        self.rows: list[Round] = [] if out is None else _whole(out)

    def tidy(self) -> None:
        """Rewrite the file so that it holds only complete rounds and the last one has a state to continue from."""
        assert self.out is not None
        while self.rows and not (round_folder(self.out, self.rows[-1].round) / STATE).is_file():
            self.rows.pop()
        write(self.out / ROWS, lines(row.to_dict() for row in self.rows))

    def add(self, row: Round) -> None:
        """Append a finished round's row. Its checkpoint must exist already, since a row without one is invalid."""
        if self.out is not None:
            append(self.out / ROWS, [row.to_dict()])
        self.rows.append(row)

    def note(self, **settings: Any) -> None:
        """Add settings to ``run.json``."""
        if self.directory is not None:
            self.directory.note(**self.cloak(settings))


@contextlib.contextmanager
def training_in(out: Path | None, identity: Identity, force: bool) -> Iterator[TrainingStore]:
    """Yield a training's store, and keep other runs out of its directory until the block ends.

    Args:
        out: the run directory; ``None`` keeps the rows in memory only.
        identity: the training's identity.
        force: discard another run in the directory.

    Raises:
        InputError: if the directory is in use, or `RunDirectory.claim` raises it.
    """
    if out is None:
        yield TrainingStore(None)
        return
    directory = RunDirectory(out, TRAINING, identity)
    with directory.locked():
        directory.claim(force)
        store = TrainingStore(directory, identity.cloak)
        store.tidy()
        yield store


def read_rounds(path: Path, whole: bool = False) -> Iterator[Round]:
    """Yield the rows of ``rounds.jsonl``, without a cut last line; `whole` as in `read_lines`."""
    return read_lines(path, Round.from_dict, whole)


def whole_rounds(out: Path) -> list[Round]:
    """Return the complete rounds that a training's directory holds; none if it holds no training."""
    return _whole(out) if known_in(out).get("kind") == TRAINING.name else []


def _whole(out: Path) -> list[Round]:
    rows: list[Round] = []
    for row in read_rounds(out / ROWS):
        if row.round != len(rows) or not (round_folder(out, row.round) / WEIGHTS).is_file():
            break
        rows.append(row)
    return rows
