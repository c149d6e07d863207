"""The directory of a training: a row and a checkpoint of each finished round, safe against a kill at any moment."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medpfl.auditing.store import ROWS as AUDIT_ROWS
from medpfl.auditing.store import discard
from medpfl.core.atomic_files import write
from medpfl.core.errors import InputError
from medpfl.core.rounds import Round
from medpfl.inputs.checkpoint import STATE, WEIGHTS, round_folder
from medpfl.runs.cloak import Cloak
from medpfl.runs.directory import RUN, append, check_rows, difference, lines, locked, note, read_json, read_lines
from medpfl.runs.identity import Identity

__all__ = ["ROWS", "TrainingStore", "read_rounds", "training_in"]

ROWS = "rounds.jsonl"


class TrainingStore:
    """Rows of rounds; on disk if it has a directory, else in memory.

    ``run.json`` holds what identifies the training, ``rounds.jsonl`` the rows, ``round-N/`` the checkpoints. A row
    counts only if all before it are there, and its checkpoint is.

    Args:
        out: the directory; ``None``: memory only.
        cloak: of texts that are written.
    """

    def __init__(self, out: Path | None, cloak: Cloak | None = None) -> None:
        self.out, self.cloak = out, cloak or Cloak(None)
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
        if self.out is not None:
            note(self.out, **self.cloak(settings))


@contextlib.contextmanager
def training_in(out: Path | None, identity: Identity, force: bool) -> Iterator[TrainingStore]:
    """The store of a training; until the block ends, other runs are kept out of the directory.

    Args:
        out: of the `TrainingStore`.
        identity: what the rows are a function of.
        force: discards what another run left there.

    Raises:
        InputError: the directory holds another run, or is in use.
    """
    if out is None:
        yield TrainingStore(None)
        return
    with locked(out):
        _claim(out, identity, force)
        store = TrainingStore(out, identity.cloak)
        store.tidy()
        yield store


def _claim(out: Path, identity: dict[str, Any], force: bool) -> None:
    found = read_json(out / RUN)
    fresh = found is None and not (out / ROWS).exists() and not (out / AUDIT_ROWS).exists()
    if not force:
        check_rows(out, found)
    if found is not None and found.get("identity") == identity and not found.get("refused"):
        return
    if not fresh and not force:
        raise InputError(
            f"'{out}' holds another run ({difference(found, identity)}): name another --out, or --force to discard it"
        )
    _discard(out)
    write(out / RUN, json.dumps({"identity": identity}, indent=1).encode())


def _discard(out: Path) -> None:
    """Removes what a training or an audit wrote, rows first; nothing else that may lie there."""
    (out / ROWS).unlink(missing_ok=True)
    discard(out)
    for folder in out.glob("round-*"):
        if (folder / WEIGHTS).is_file():
            shutil.rmtree(folder)


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
