"""The command line: parse, build, call, print."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import SUPPRESS, ArgumentError, ArgumentParser, Namespace
from pydantic import ValidationError

from medpfl.core.errors import InputError, nearest
from medpfl.core.experiment import Experiment
from medpfl.core.threat import GRANTS

__all__ = ["main"]

_DONE, _BAD_INPUT, _INTERRUPTED = 0, 2, 130
_ROLES = ("attacks", "defenses", "models", "metrics", "data")
_REPEATED = ("--attack", "--defense", "--grant")
_COMMANDS = {
    "audit": "audit a folder of medical images, a recorded update, or the embedded samples",
    "demo": "audit the embedded samples, offline",
    "list": "name every attack, defense, model, metric and data source",
    "report": "make the pages of a run directory again from its rows",
}


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
    parser = _parser()
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        raise InputError(f"there is no command '{words[0]}'; {nearest(words[0], _COMMANDS)}")
    try:
        given = parser.parse_args(_spelled(words))
    except ArgumentError as error:
        raise InputError(f"{_plain(str(error))}; 'medpfl {words[0]} --help' names the options") from None
    if given.subcommand is None:
        parser.print_help()
        return _BAD_INPUT
    commands = {"audit": _audit, "demo": _demo, "list": _list, "report": _report}
    return commands[given.subcommand](given[given.subcommand])


def _plain(text: str) -> str:
    """What the parser found wrong, in the words of the command line.

    >>> _plain("unrecognized arguments: --image 3")
    "there is no option '--image'; did you mean '--images'?"
    >>> _plain("Parser key \\"fit\\": Expected a typing.Literal['crop', 'squash']. Got value: x")
    '--fit is x: it must be one of crop, squash'
    """
    if text.startswith("unrecognized arguments: "):
        extra = text.split()[2]
        known = [_option(name) for name in (*Experiment.model_fields, "out", "force", "quiet", "config")]
        near = nearest(extra, known)
        hint = f"; {near}" if near.startswith("did") else ""
        return f"there is no option '{extra}'{hint}" if extra.startswith("-") else f"'{extra}' is one word too many"
    key, value = re.search(r'Parser key "(\w+)"', text), re.search(r"(?:Got|Given) value: (.*)", text)
    kinds = re.findall(r"Expected an? (?:<class '|typing\.)(int|float|list|Literal\[.*?\])", text)
    if key and value and kinds:
        return f"{_option(key[1])} is {value[1]}: it must be {' or '.join(map(_kind, kinds))}"
    return re.sub(r"\s+", " ", text).replace("report.out", "the run directory")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind(name: str) -> str:
    choices = name.removeprefix("Literal[").rstrip("]").replace("'", "")
    return {"int": "a whole number", "float": "a number", "list": "a list"}.get(name, f"one of {choices}")


def _spelled(words: list[str]) -> list[str]:
    """Options may be spelled with ``_``; those given once for each value become one list; a file comes first."""
    plain, files, lists, words = [], [], {}, list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--print_config" if name in ("--print-config", "--print_config") else name.replace("_", "-")
        if name not in (*_REPEATED, "--config"):
            plain.append(name + equals + value)
        elif not (equals or words):
            raise InputError(f"{name} needs a value")
        elif name == "--config":
            files += [name, value if equals else words.pop(0)]  # what is said after a file overrides it
        else:
            lists.setdefault(name, []).append(value if equals else words.pop(0))
    return plain[:1] + files + plain[1:] + [f"{name}={json.dumps(values)}" for name, values in lists.items()]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="medpfl",
        allow_abbrev=False,
        exit_on_error=False,
        description="Measures what a federated-learning server can read back from what a hospital sends.",
        version=_version(),
    )
    commands = parser.add_subcommands(required=False, metavar="COMMAND")
    makers = {"audit": _audit_parser, "demo": _demo_parser, "list": _list_parser, "report": _report_parser}
    for name, make in makers.items():
        commands.add_subcommand(name, make(), help=_COMMANDS[name])
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("medpfl")
    except PackageNotFoundError:
        return "unknown"


def _audit_parser() -> ArgumentParser:
    parser = ArgumentParser(
        allow_abbrev=False,
        exit_on_error=False,
        description="Audits what the server could read back from updates on these images.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    for name, field in Experiment.model_fields.items():
        option = "data" if name == "data" else _option(name)
        default = field.get_default(call_default_factory=True)
        # Without a word for it, a positional argument would put its default in place of what --config says.
        extra: dict[str, Any] = {"nargs": "?", "default": SUPPRESS} if name == "data" else {"default": default}
        text = f"{field.description} (default: {default})" if name == "data" else field.description
        parser.add_argument(option, type=field.annotation, help=text, **extra)
    _add_run_options(parser)
    return parser


def _add_run_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=str | None, default=None, help="run directory; the same command continues it")
    parser.add_argument("--force", action="store_true", help="discard what another experiment left in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no table")


def _demo_parser() -> ArgumentParser:
    parser = ArgumentParser(
        allow_abbrev=False,
        exit_on_error=False,
        description="Audits the embedded samples with and without a defense, offline.",
    )
    _add_run_options(parser)
    return parser


def _list_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, description="Names the parts that an audit is made of.")
    parser.add_argument("role", nargs="?", default=None, help=f"only these: {', '.join(_ROLES)}")
    return parser


def _report_parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False, description="Makes summary and pages again from the rows of a run directory."
    )
    parser.add_argument("out", type=str, help="run directory")
    parser.add_argument("--quiet", action="store_true", help="no table")
    return parser


def _audit(given: Namespace) -> int:
    options = {k: v for k, v in given.as_dict().items() if k in Experiment.model_fields}
    try:
        experiment = Experiment(**options)
    except ValidationError as error:
        wrong = error.errors()[0]
        option = _option(".".join(map(str, wrong["loc"])))
        raise InputError(f"{option} is {wrong['input']!r}: {wrong['msg'].lower()}") from None
    return _perform(experiment, given)


def _perform(experiment: Experiment, given: Namespace) -> int:
    from medpfl.auditing.run import audit
    from medpfl.core.plan import Plan
    from medpfl.core.threat import ThreatModel

    options = experiment.model_dump()
    plan = Plan(**{k: options.pop(k) for k in list(options) if k in Plan.__dataclass_fields__})
    threat = ThreatModel(tuple(options.pop("grant")))
    attacks, defenses = options.pop("attack"), options.pop("defense")
    report = audit(
        **options,
        attacks=attacks,
        defenses=defenses,
        threat=threat,
        plan=plan,
        out=given.out,
        force=given.force,
        progress=not given.quiet,
    )
    _print(report, given.quiet)
    return _DONE


def _demo(given: Namespace) -> int:
    return _perform(DEMO, given)


DEMO = Experiment(
    model="LeNet('idlg')",
    attack=["iDLG", "DLG"],
    defense=["LaplaceNoise(scale=0.01)"],
    images=24,
)


def _report(given: Namespace) -> int:
    from medpfl.auditing.report import reread

    _print(reread(Path(given.out)), given.quiet)
    return _DONE


def _print(report: Any, quiet: bool) -> None:
    from rich.console import Console

    from medpfl.reporting import terminal_table

    console = Console()
    if not quiet:
        console.print(terminal_table(report.summary))
        for note in report.settings.get("notes", []):
            console.print(note, style="dim")
    for sentence in report.verdict():
        console.print(sentence, soft_wrap=True)
    if not report.pages and not quiet:
        console.print("nothing was saved: --out names a directory for rows and pages", style="dim")
    for page in report.pages:
        if page.suffix == ".html":
            console.print(f"wrote {page}", soft_wrap=True, highlight=False)


def _list(given: Namespace) -> int:
    from importlib import import_module

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from medpfl.core.spec import registry, signature, summary

    if (only := str(given.role or "")) and only not in _ROLES:
        raise InputError(f"there is no role '{only}'; {nearest(only, _ROLES)}")
    console = Console(highlight=False)
    for role in [only] if only else _ROLES:
        table = Table(box=None, show_header=False, title=role.capitalize(), title_justify="left")
        for name, member in registry(import_module(f"medpfl.{role}")).items():
            table.add_row(f"  {name}", Text(summary(member)))
            if arguments := signature(member):
                table.add_row("", Text(arguments, style="dim"))
        console.print(table)
    if not only:
        console.print("Grants", style="italic")
        for grant, meaning in GRANTS.items():
            console.print(f"  {grant:<12}{meaning}")
    return _DONE


if __name__ == "__main__":
    sys.exit(main())
