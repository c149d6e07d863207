"""The directory of a training: a row and a checkpoint of each finished round, safe against a kill at any moment."""

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
from medpfl.runs.directory import Kind, RunDirectory, append, lines, read_lines
from medpfl.runs.identity import Identity

__all__ = ["ROWS", "TRAINING", "TrainingStore", "read_rounds", "training_in"]

ROWS = f"{SHARE_FOLDER}/rounds.jsonl"
"""Path of the rows in a training's directory."""

_CHECKPOINTS = (f"round-*/{WEIGHTS}", f"round-*/{STATE}")
TRAINING = Kind("training", 2, ("rounds.jsonl", "summary.json", "report.html", *_CHECKPOINTS))
"""From format 2 on, what may be shared has a folder."""


class TrainingStore:
    """Rows of rounds; on disk if it has a directory, else in memory.

    ``run.json`` holds what identifies the training, ``share/rounds.jsonl`` the rows, ``round-N/`` the checkpoints. A
    row counts only if all before it are there, and its checkpoint is.

    Args:
        directory: of the run; ``None``: memory only.
        cloak: of texts that are written.
    """

    def __init__(self, directory: RunDirectory | None, cloak: Cloak | None = None) -> None:
        self.directory, self.cloak = directory, cloak or Cloak(None)
        self.out = out = None if directory is None else directory.path
        self.rows: list[Round] = [] if out is None else _whole(out)

    def tidy(self) -> None:
        """Leaves only whole rounds in the file, and the last of them with a state to go on from."""
        assert self.out is not None
        while self.rows and not (round_folder(self.out, self.rows[-1].round) / STATE).is_file():
            self.rows.pop()
        write(self.out / ROWS, lines(row.to_dict() for row in self.rows))

    def add(self, row: Round) -> None:
        """Keeps a finished round, after its checkpoint: a row must never speak of one that is not there."""
        if self.out is not None:
            append(self.out / ROWS, [row.to_dict()])
        self.rows.append(row)

    def note(self, **settings: Any) -> None:
        """Adds settings to ``run.json``."""
        if self.directory is not None:
            self.directory.note(**self.cloak(settings))


@contextlib.contextmanager
def training_in(out: Path | None, identity: Identity, force: bool) -> Iterator[TrainingStore]:
    """The store of a training; until the block ends, other runs are kept out of the directory.

    Args:
        out: of the `TrainingStore`.
        identity: what the rows are a function of.
        force: discards what another run left there.

    Raises:
        InputError: the directory is in use, or from `RunDirectory.claim`.
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
    """The rows of ``rounds.jsonl``; a last line that was cut is left out, `whole` as in `read_lines`."""
    return read_lines(path, Round.from_dict, whole)


def _whole(out: Path) -> list[Round]:
    rows: list[Round] = []
    for row in read_rounds(out / ROWS):
        if row.round != len(rows) or not (round_folder(out, row.round) / WEIGHTS).is_file():
            break
        rows.append(row)
    return rows
