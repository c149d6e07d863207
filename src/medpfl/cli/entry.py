"""The command line's entry: parse, run the command, and end with a message and a status."""

from __future__ import annotations

from medpfl.cli.interruption import MESSAGE, STATUS, handled  # first, to catch an interruption of the imports below

# isort: split
import os
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentError, Namespace

from medpfl.cli import commands, record_commands
from medpfl.cli.config_files import check_files, files_of
from medpfl.cli.endings import BAD_INPUT, DONE, as_json, ended, hung_up, of_disk, refused
from medpfl.cli.parser import COMMANDS, options_of, parser_of
from medpfl.cli.running import check_pdf
from medpfl.cli.words import plain, spelled, spelled_names
from medpfl.core.errors import InputError, nearest
from medpfl.core.messages import speaking

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    0: done. 2: bad input, or a wrong record. 3 or 4: under ``--fail-on``, a leak was found or the result is
    inconclusive. 130: interrupted. 141: the reader of the output closed it, as ``head`` does.
    """
    try:
        # On a shared machine, spinning threads slow everything down several times over.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        words = list(sys.argv[1:] if arguments is None else arguments)
        with handled(), speaking("--show-paths" in spelled_names(words), words):
            return _main(words)
    except KeyboardInterrupt:
        print(MESSAGE, file=sys.stderr)
        return STATUS


def _main(words: list[str]) -> int:
    given: Namespace | int | None = None
    try:
        given = _parsed(words)
        status = given if isinstance(given, int) else _run(given, words)
        sys.stdout.flush()  # here, where a closed pipe is handled
        return status
    except InputError as error:
        return refused(f"{error}", as_json(given, words))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return hung_up()
        return refused(of_disk(error), as_json(given, words))
    except SystemExit as end:
        return ended(end)


def _parsed(words: list[str]) -> Namespace | int:
    """Return the options, or the exit status if there is nothing else to do, as after ``--help``.

    Raises:
        InputError: the words cannot be parsed.
    """
    if any("\0" in word for word in words):
        raise InputError("an option contains a null byte: no path or spec may contain one")
    parser = parser_of()
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise InputError(f"there is no command '{words[0]}'; {nearest(words[0], COMMANDS)}")
    check_files(words)
    try:
        given = parser.parse_args(spelled(words))
    except SystemExit as end:  # after --help, --version and --print-config
        return int(end.code or DONE)
    except ArgumentError as error:
        if (
            words[0] == "audit"
            and sum(word.endswith(".safetensors") for word in words) > 1
            and "extra" in plain(str(error))
        ):
            raise InputError(
                "several records were given: put their pattern in quotes, so that the shell keeps it"
            ) from None
        where = _in_file(words)
        known, command = (options_of(parser, words[0]), f" {words[0]}") if words[0] in COMMANDS else ((), "")
        raise InputError(f"{where}{plain(str(error), known)}; 'medpfl{command} --help' lists the options") from None
    if given.subcommand is None:
        parser.print_help()
        return BAD_INPUT
    return given


def _run(given: Namespace, words: list[str]) -> int:
    command, options = given.subcommand, given[given.subcommand]
    if options.get("pdf"):
        check_pdf(options)  # before any work
    return {**commands.RUN, **record_commands.RUN}[command](options, words)


def _in_file(words: list[str]) -> str:
    """Return the name of the invalid YAML file as the start of a message; ``""`` if none is invalid."""
    for path in files_of(words):
        try:
            parser_of().parse_args([words[0], "--config", path])
        except ArgumentError:
            return f"in '{path}': "
    return ""
