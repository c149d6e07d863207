"""Commands on one model or one record: ``check-model``, ``record``, ``inspect`` and ``forget``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from medpfl.cli.asked import experiment_from, spelled_right
from medpfl.cli.endings import BAD_INPUT, DONE
from medpfl.cli.machine import print_json
from medpfl.cli.running import LOADING, working
from medpfl.core.errors import InputError
from medpfl.core.experiments.inspection import Inspection
from medpfl.core.experiments.recording import Forgetting, Looking, Recording
from medpfl.core.messages import counted, say
from medpfl.core.progress import phase
from medpfl.core.records.view import RecordView

__all__ = ["RUN"]


def _check_model(given: Namespace, words: list[str]) -> int:
    asked = spelled_right(Inspection, given, words)
    shape = _shape(asked.image_shape) if asked.image_shape else (asked.channels, asked.size, asked.size)
    with working(asked):
        with phase(LOADING):
            from medpfl.inspection.check import check_model
            from medpfl.reporting.model_page import model_page, write_model_page

        options = {"weights": asked.weights, "mode": asked.mode, "seed": asked.seed}
        check = check_model(asked.model, shape, asked.classes, **options).to_dict()
    if asked.page:
        write_model_page(Path(asked.page), check)
        say(f"wrote {asked.page}")
    if asked.json:
        print_json(check)
        return DONE
    _print_page(model_page(check))
    return DONE


def _print_page(page: Sequence[tuple[str, list[str]]]) -> None:
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False, markup=False)
    for heading, lines in page:
        console.print(heading, style="bold")
        for line in lines:
            console.print(Padding(line, (0, 0, 0, 2)))


def _record(given: Namespace, words: list[str]) -> int:
    asked = experiment_from(Recording, given, words)
    with working(asked, given.quiet):
        with phase(LOADING):
            from medpfl.recording.states import perform_recording

        made = perform_recording(asked)
    if made.view.verdict == "wrong":
        say(f"note: {_kept(asked.out, made.written.truth)}")
    if given.json:
        files = [str(path) for path in made.written if path is not None]
        status = BAD_INPUT if made.view.verdict == "wrong" else DONE
        print_json({"kind": "record", **made.view.to_dict(), "files": files, "status": status})
        return status
    if not given.quiet:
        say(f"wrote {made.written.record}", sys.stdout)
        if made.written.truth is not None:
            say(f"wrote {made.written.truth}: private images, for this site only, until {made.expires}", sys.stdout)
    return _shown(made.view, given.quiet)


def _kept(folder: str, truth: Path | None) -> str:
    """Return the note on a wrong record that was written, so that its files do not stay behind unnoticed."""
    if truth is None:
        return f"the wrong record was kept in '{folder}': delete it, or later audits of this folder stop at it"
    return (
        f"the wrong record was kept in '{folder}', and its private images in '{truth.parent}': delete both files "
        f"before you repeat the command ('medpfl forget {folder}' deletes all truth files there, but no record)"
    )


def _inspect(given: Namespace, words: list[str]) -> int:
    asked = experiment_from(Looking, given, words)
    with working(asked):
        with phase(LOADING):
            from medpfl.recording.states import perform_looking

        made = perform_looking(asked)
    if asked.page:
        from medpfl.reporting.record_page import write_page

        write_page(Path(asked.page), made)
        say(f"wrote {asked.page}")
    if asked.json:
        print_json(made.to_dict())
        return BAD_INPUT if made.verdict == "wrong" else DONE
    return _shown(made)


def _shown(made: RecordView, quiet: bool = False) -> int:
    """Print the view of a record, and return the exit status."""
    from medpfl.reporting.record_page import record_page

    if not quiet:
        _print_page(record_page(made))
    return BAD_INPUT if made.verdict == "wrong" else DONE


def _forget(given: Namespace, words: list[str]) -> int:
    asked = experiment_from(Forgetting, given, words)
    with working(asked):
        with phase(LOADING):
            from medpfl.inputs.spelling import path_of
            from medpfl.recording.folder import forget

        found = forget(path_of(asked.folder))
    if given.json:
        print_json({"kind": "forget", "deleted": found.deleted, "remaining": len(found.remaining), "status": DONE})
        return DONE
    print(f"deleted {counted(found.deleted, 'truth file')}. Backups and snapshots of the disk may still hold them.")
    for path in found.remaining:
        say(f"remains: {path}", sys.stdout)
    return DONE


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.strip("()[] ").replace("x", ",").split(","))
    except ValueError:
        raise InputError(f"--image-shape is {text}: give channels and side lengths, such as 1,64,64") from None


RUN = {"check-model": _check_model, "forget": _forget, "inspect": _inspect, "record": _record}
"""The commands' functions, each of the options and the words of the command line; they return the exit status."""
