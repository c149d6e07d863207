"""The command line: parse, build, call, print."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, Namespace
from pydantic import BaseModel, ValidationError

from medpfl.core.errors import InputError, nearest
from medpfl.core.experiment import Experiment
from medpfl.core.frontier import Frontier
from medpfl.core.threat import GRANTS
from medpfl.core.training import Training
from medpfl.options import COMMANDS, ROLES, files_of, mapping_of, option_of, parser_of, plain, spelled
from medpfl.reproduction.experiments import EXPERIMENTS

__all__ = ["main"]

T = TypeVar("T", bound=BaseModel)

_DONE, _BAD_INPUT, _INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0 done, 2 bad input, 130 interrupted."""
    # On a machine that others use too, threads that wait by spinning slow everything down, several times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except InputError as error:
        print(f"medpfl: error: {error}", file=sys.stderr)
        return _BAD_INPUT
    except OSError as error:
        print(f"medpfl: error: {_of_disk(error)}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        print("medpfl: interrupted; the same command continues with --out where it stopped", file=sys.stderr)
        return _INTERRUPTED
    except SystemExit as end:  # after --help, --version and --print-config
        return int(end.code or _DONE)


def _of_disk(error: OSError) -> str:
    where = f": '{error.filename}'" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "; make room and give the same command again: with --out, what was finished is kept" if full else ""
    return f"{(error.strerror or str(error)).lower()}{where}{hint}"


def _run(words: list[str]) -> int:
    parser = parser_of()
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise InputError(f"there is no command '{words[0]}'; {nearest(words[0], COMMANDS)}")
    try:
        given = parser.parse_args(spelled(words))
    except ArgumentError as error:
        where = _in_file(words)
        raise InputError(f"{where}{plain(str(error))}; 'medpfl {words[0]} --help' names the options") from None
    if given.subcommand is None:
        parser.print_help()
        return _BAD_INPUT
    typed = {"audit": _audit, "frontier": _frontier, "train": _train}
    if given.subcommand in typed:
        return typed[given.subcommand](given[given.subcommand], words)
    commands = {
        "check-model": _check_model,
        "demo": _demo,
        "list": _list,
        "report": _report,
        "reproduce": _reproduce,
    }
    return commands[given.subcommand](given[given.subcommand])


def _in_file(words: list[str]) -> str:
    """Which YAML file is wrong, if one of them is."""
    for path in files_of(words):
        try:
            parser_of().parse_args([words[0], "--config", path])
        except ArgumentError:
            return f"in '{path}': "
    return ""


def _audit(given: Namespace, words: list[str]) -> int:
    return _perform(_typed(Experiment, given, words), given)


def _train(given: Namespace, words: list[str]) -> int:
    from medpfl.auditing.perform_training import perform_training

    result = perform_training(_typed(Training, given, words), given.out, given.force, not given.quiet)
    _print_training(result, given.quiet)
    return _DONE


def _frontier(given: Namespace, words: list[str]) -> int:
    from medpfl.frontier.run import frontier

    experiment = _typed(Frontier, given, words)
    if given.out is None:
        raise InputError("a frontier is kept as it goes on: --out names a directory for its runs and its figure")
    _print_frontier(frontier(experiment, given.out, given.force, not given.quiet), given.quiet)
    return _DONE


def _typed(experiment: type[T], given: Namespace, words: list[str]) -> T:
    """The options as the typed experiment; what is wrong is said in their words."""
    options = {k: v for k, v in given.as_dict().items() if k in experiment.model_fields}
    try:
        return experiment(**options)
    except ValidationError as error:
        wrong = error.errors()[0]
        option = option_of(".".join(map(str, wrong["loc"])))
        typed = any(word.partition("=")[0] == option for word in spelled(words))
        files = [] if typed else files_of(words)
        where = f"in {' or '.join(map(repr, files))}: " if files else ""
        raise InputError(f"{where}{option} is {wrong['input']!r}: {wrong['msg'].lower()}") from None


def _perform(experiment: Experiment, given: Namespace) -> int:
    from medpfl.auditing.over_rounds import leakage, rounds_in
    from medpfl.auditing.perform import options_of, perform

    run: dict[str, Any] = {"out": given.out, "force": given.force, "progress": not given.quiet}
    if experiment.rounds is None:
        _print(perform(experiment, **run), given.quiet)
    else:
        rounds = rounds_in(experiment.rounds)
        _print_leakage(leakage(rounds=rounds, **options_of(experiment), **run), given.quiet)
    return _DONE


def _demo(given: Namespace) -> int:
    return _perform(DEMO, given)


DEMO = Experiment(
    model="LeNet('idlg')",
    attack=["iDLG"],
    defense=["LaplaceNoise(scale=0.01)"],
    images=16,
)


def _check_model(given: Namespace) -> int:
    import json

    from rich.console import Console
    from rich.padding import Padding

    from medpfl.auditing.model_check import check_model
    from medpfl.reporting.model_page import model_page

    shape = _shape(given.image_shape) if given.image_shape else (given.channels, given.size, given.size)
    options = {"weights": given.weights, "mode": given.mode, "seed": given.seed}
    check = check_model(given.model, shape, given.classes, **options).to_dict()
    if given.json:
        print(json.dumps(check, indent=1))
        return _DONE
    console = Console(highlight=False, markup=False)
    for heading, lines in model_page(check):
        console.print(heading, style="bold")
        for line in lines:
            console.print(Padding(line, (0, 0, 0, 2)))
    return _DONE


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.strip("()[] ").replace("x", ",").split(","))
    except ValueError:
        raise InputError(f"--image-shape is {text}: write channels and sides, such as 1,64,64") from None


def _report(given: Namespace) -> int:
    from medpfl.auditing.report import reread
    from medpfl.auditing.run_files import is_of
    from medpfl.auditing.training_report import reread_training
    from medpfl.frontier.run import remake

    if is_of("frontier", Path(given.out)):
        _print_frontier(remake(Path(given.out)), given.quiet)
        return _DONE
    if is_of("training", Path(given.out)):
        _print_training(reread_training(Path(given.out)), given.quiet)
        return _DONE
    _print(reread(Path(given.out)), given.quiet)
    return _DONE


def _reproduce(given: Namespace) -> int:
    from medpfl.reproduction.run import remake, reproduce

    if given["from"]:
        found = remake(given["from"])
    else:
        options = {k: given[k] for k in ("quick", "faithful", "weights", "seed", "force")}
        experiments = given.experiment or EXPERIMENTS
        sets = mapping_of(given.sets) if given.sets else {}
        found = reproduce(experiments, data=given.data, out=given.out, sets=sets, progress=not given.quiet, **options)
    for gap in found.gaps:
        print(f"{'failed' if gap.failed else 'not run'}: {gap}")
    for table in found.tables:
        if table.suffix == ".md":
            print(f"wrote {table}, and the same as .csv and .tex")
    return _BAD_INPUT if any(gap.failed for gap in found.gaps) else _DONE


def _print(report: Any, quiet: bool) -> None:
    from rich.console import Console

    from medpfl.reporting import mask_lines, patient_lines, terminal_table

    console = Console()
    if not quiet:
        console.print(terminal_table(report.summary))
        for line in [*patient_lines(report.summary), *mask_lines(report.summary)]:
            console.print(line, markup=False, highlight=False)
        for note in report.settings.get("notes", []):
            console.print(note, style="dim")
        for spec, epsilon in (report.settings.get("privacy") or {}).items():
            console.print(f"{spec} spends {epsilon}", markup=False, highlight=False, soft_wrap=True)
    if report.classes and console.is_terminal and not quiet:
        # Not into a file that the output goes to: a class folder may be named for a patient.
        names = ", ".join(f"class {i}: {name}" for i, name in enumerate(report.classes))
        console.print(names, style="dim", markup=False, highlight=False, soft_wrap=True)
    for sentence in report.verdict():
        console.print(sentence, soft_wrap=True)
    if not report.pages and not quiet:
        console.print("nothing was saved: --out names a directory for rows and pages", style="dim")
    for page in report.pages:
        if page.suffix == ".html":
            console.print(f"wrote {page}", soft_wrap=True, highlight=False)


def _print_leakage(found: Any, quiet: bool) -> None:
    from rich.console import Console

    from medpfl.reporting.leakage import leakage_table

    console = Console()
    if not quiet:
        console.print(leakage_table(found.summary))
    console.print(str(found), soft_wrap=True)
    for page in found.pages:
        console.print(f"wrote {page}", soft_wrap=True, highlight=False)


def _print_frontier(found: Any, quiet: bool) -> None:
    from rich.console import Console

    from medpfl.reporting.frontier import frontier_table, reading

    console = Console()
    if not quiet:
        console.print(frontier_table(found.points, found.recommendation))
        for line in [*reading(found.settings), *found.settings["notes"]]:
            console.print(line, style="dim", markup=False, highlight=False)
    console.print(str(found), soft_wrap=True, markup=False)
    for page in found.pages:
        console.print(f"wrote {page}", soft_wrap=True, highlight=False)


def _print_training(result: Any, quiet: bool) -> None:
    from rich.console import Console

    from medpfl.reporting.training import training_table

    console = Console()
    if not quiet:
        console.print(training_table(result.rows))
        for note in result.settings.get("notes", []):
            console.print(note, style="dim")
    console.print(str(result), soft_wrap=True)
    for page in result.pages:
        console.print(f"wrote {page}", soft_wrap=True, highlight=False)


def _list(given: Namespace) -> int:
    from importlib import import_module

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from medpfl.core.spec import registry, signature, summary

    parts = {role: registry(import_module(f"medpfl.{role}")) for role in ROLES}
    inner = registry(import_module("medpfl.attacks.matching"))
    each = {name: member for members in (inner, *parts.values()) for name, member in members.items()}
    if (only := str(given.what or "")) in each:
        return _explain(only, each[only])
    if only and only not in ROLES:
        raise InputError(f"there is no role or part '{only}'; {nearest(only, [*ROLES, *each])}")
    console = Console(highlight=False)
    for role in [only] if only else ROLES:
        table = Table(box=None, show_header=False, title=role.capitalize(), title_justify="left")
        for name, member in parts[role].items():
            table.add_row(f"  {name}", Text(summary(member)))
            if arguments := signature(member):
                table.add_row("", Text(arguments, style="dim"))
        console.print(table)
    if not only:
        console.print("Grants", style="italic")
        for grant, meaning in GRANTS.items():
            console.print(f"  {grant:<12}{meaning}")
    return _DONE


def _explain(name: str, member: Any) -> int:
    from inspect import getdoc

    from medpfl.core.spec import signature

    arguments = signature(member)
    print(name + (f"({arguments})" if arguments else ""), getdoc(member) or "", sep="\n\n")
    return _DONE


if __name__ == "__main__":
    sys.exit(main())
