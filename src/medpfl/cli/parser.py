"""The command line's parser: typed experiments as options, and plain error messages."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from jsonargparse import SUPPRESS, ActionYesNo, ArgumentParser

from medpfl.cli.help import COMMANDS as THEMES
from medpfl.cli.help import HelpParser
from medpfl.core.errors import InputError, nearest
from medpfl.core.experiments.evaluation import Evaluating
from medpfl.core.experiments.experiment import Demo, Experiment
from medpfl.core.experiments.frontier import Frontier, is_recommendation
from medpfl.core.experiments.inspection import Inspection
from medpfl.core.experiments.limits import shortened
from medpfl.core.experiments.options import Options, options_in
from medpfl.core.experiments.recording import Forgetting, Looking, Recording
from medpfl.core.experiments.training import Training
from medpfl.core.user_code.stated import check_stated
from medpfl.core.yaml_files import read_yaml
from medpfl.reproduction.scale import Studies

__all__ = [
    "COMMANDS",
    "ROLES",
    "check_files",
    "files_of",
    "mapping_of",
    "option_of",
    "options_of",
    "parser_of",
    "plain",
    "spelled",
    "spelled_names",
]

ROLES = ("attacks", "defenses", "models", "metrics", "data")
_REPEATED = ("--attack", "--defense", "--grant", "--limit", "--part", "--sends")
_NONE = ("--sends", "nothing")
"""The option and value that stand for an empty list."""
COMMANDS = {name: text for commands in THEMES.values() for name, text in sorted(commands.items())}


def plain(text: str, known: Sequence[str] = ()) -> str:
    """Translate a parser error into the command line's terms.

    Args:
        text: the parser's message.
        known: the command's options, for a suggestion; by default, those of all audits and trainings.

    >>> plain("unrecognized arguments: --image 3")
    "there is no option '--image'; did you mean '--images'?"
    >>> plain("Parser key \\"fit\\": Expected a typing.Literal['crop', 'squash']. Got value: x")
    '--fit is x: it must be one of crop, squash'
    >>> plain("unrecognized arguments: --plan FedAvg").partition(", such as")[0]
    "there is no option '--plan': the settings of a plan are options of their own"
    """
    if unknown := re.search(r"does not accept option '([^']*)'", text):  # in a file for --config
        return f"there is no option '{unknown[1]}'{_near(unknown[1].replace('_', '-'), known)}"
    if text.startswith("unrecognized arguments: "):
        extra = text.split()[2]
        extra = extra.partition("=")[0] if extra.startswith(_REPEATED) else extra
        return (
            f"there is no option '{extra}'{_near(extra, known)}"
            if extra.startswith("-")
            else f"'{extra}' is an unexpected extra argument"
        )
    if flag := re.match(r"argument (--\S+): ignored explicit argument '(.*)'", text):
        return f"{flag[1]} takes no value, but '{flag[2]}' was given"
    if 'Parser key "config"' in text and "does not exist" in text:
        return "there is no such file"
    key, value = re.search(r'Parser key "(\w+)"', text), re.search(r"(?:Got|Given) value: (.*)", text)
    kinds = re.findall(r"Expected an? (?:<class '|typing\.)(int|float|list|Literal\[.*?\])", text)
    if key and value and kinds:
        said = f"{option_of(key[1])} is {value[1]}: it must be {' or '.join(map(_kind, kinds))}"
        near = nearest(value[1].strip("'"), [choice for kind in kinds for choice in _choices(kind)] or [""])
        return f"{said}; {near}" if near.startswith("did") else said
    names = {
        "report.out": "the run directory",
        "check-model.model": "the model",
        "record.before": "the state before the training",
        "record.after": "the state after the training",
        "inspect.record": "the record",
        "forget.folder": "the folder of records",
    }
    return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], re.sub(r"\s+", " ", text))


def _near(option: str, known: Sequence[str]) -> str:
    """Return the end of a message that suggests the option nearest to an unknown one; ``""`` if none is near."""
    fields = {**options_in(Experiment), **options_in(Training), **options_in(Frontier)}
    first = option.removeprefix("--").partition("=")[0].partition(".")[0]
    if own := {name: entry for name, entry in fields.items() if entry.group == first and entry.help}:
        example = " ".join(f"{option_of(name)} {entry.default}" for name, entry in list(own.items())[:2])
        return f": the settings of a {first} are options of their own, such as {example}"
    options = known or [*map(option_of, (*fields, "quiet", "config"))]
    bare = "" if option.startswith("-") else "--"
    near = nearest(option, [name.removeprefix(bare) for name in options if name != option])
    return f"; {near}" if near.startswith("did") else ""


def options_of(parser: ArgumentParser, command: str) -> list[str]:
    """Return the spellings of a command's options."""
    assert parser._subcommands_action is not None
    own = parser._subcommands_action._name_parser_map[command]
    return [text for action in own._actions for text in action.option_strings if text.startswith("--")]


def option_of(name: str) -> str:
    """Return an option's spelling on the command line. Names that are Python keywords end with ``_`` in the code."""
    return "--" + name.rstrip("_").replace("_", "-")


def _kind(name: str) -> str:
    return {"int": "a whole number", "float": "a number", "list": "a list, such as [a, b]"}.get(
        name, f"one of {', '.join(_choices(name))}"
    )


def _choices(name: str) -> list[str]:
    """Return the words of a literal type; an empty list for another one."""
    words = name.removeprefix("Literal[").rstrip("]").replace("'", "")
    return words.split(", ") if name.startswith("Literal") else []


def spelled(words: list[str]) -> list[str]:
    """Normalize the words of a command.

    Options may be spelled with ``_``. Repeated options become one list. ``--config`` files come first.
    """
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
            files += [name, value if equals else words.pop(0)]  # options on the command line override a file
        else:
            value = value if equals else words.pop(0)
            lists.setdefault(name, []).extend([] if (name, value) == _NONE else [value])
    return plain[:1] + files + plain[1:] + [f"{name}={json.dumps(values)}" for name, values in lists.items()]


def spelled_names(words: list[str]) -> list[str]:
    """Return the words of a command, with ``-`` instead of ``_`` in option names."""
    return [word.replace("_", "-") if word.startswith("--") else word for word in words]


def files_of(words: list[str]) -> list[str]:
    """Return the files given with ``--config``."""
    said = spelled(words)
    return [said[i + 1] for i, word in enumerate(said) if word == "--config"]


def check_files(words: list[str]) -> None:
    """Check the files given with ``--config`` before the parser opens them.

    A user's own YAML file may name the user's code. A recommendation from ``medpfl frontier`` may come from another
    party, so it may name only MedPFL's parts. Options that the command line overrides are not checked in it.

    Raises:
        InputError: a file cannot be read safely, is no mapping, or is a recommendation that names code, a path, a URL
            or a device.
    """
    for path in files_of(words):
        found = read_yaml(path)
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise InputError(f"in '{path}': a file for --config needs one line for each option, 'name: value'")
        if "config" in found:
            raise InputError(f"in '{path}': a file for --config cannot include another: remove 'config'")
        if is_recommendation(path):
            _check_recommendation(path, found, {word.partition("=")[0] for word in spelled(words)})


def _check_recommendation(path: str, found: dict[str, Any], said: set[str]) -> None:
    for name, value in found.items():
        if not re.fullmatch(r"[a-z_-]+", name):  # such as 'defense+', which adds to a list
            raise InputError(f"in '{path}': {shortened(name)} is not a plain option name, as a recommendation needs")
        option = option_of(name)
        if name.replace("-", "_") not in _RECOMMENDED:
            raise InputError(f"in '{path}': it sets {option}, which a recommendation must not set: give it yourself")
        if option in said or value is None:
            continue
        if name in _SPECS:
            for text in value if isinstance(value, list) else [value]:
                check_stated(text, name, path, option)
        elif name in _PLACES or (name == "device" and value != "cpu"):
            raise InputError(
                f"in '{path}': it sets {option} {shortened(value)}, but a recommendation must name no path or device: "
                f"give {option if name != 'data' else 'the images'} yourself if you trust that file"
            )


_RECOMMENDED = {name for name in options_in(Training) if name not in ("force", "progress")}
_SPECS = ("model", "attack", "defense", "partition")
_PLACES = ("data", "weights", "validation", "test", "truth", "out")


def parser_of() -> ArgumentParser:
    """Return the parser for all commands."""
    parser = HelpParser(
        prog="medpfl",
        allow_abbrev=False,
        exit_on_error=False,
        description="Measure which images a federated-learning server can reconstruct from a hospital's updates.",
        version=_version(),
    )
    commands = parser.add_subcommands(required=False, metavar="COMMAND")
    makers = {
        "audit": _audit_parser,
        "check-model": _check_model_parser,
        "compare": _compare_parser,
        "demo": _demo_parser,
        "evaluate": _evaluate_parser,
        "forget": _forget_parser,
        "frontier": _frontier_parser,
        "inspect": _inspect_parser,
        "list": _list_parser,
        "record": _record_parser,
        "report": _report_parser,
        "reproduce": _reproduce_parser,
        "train": _train_parser,
    }
    for name, make in makers.items():
        commands.add_subcommand(name, make(), help=COMMANDS[name])
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("medpfl")
    except PackageNotFoundError:
        return "unknown"


def _audit_parser() -> ArgumentParser:
    text = "Attack the updates of these images, with and without defenses, and report what the server can reconstruct."
    return _add_pdf(_add_fail_on(_typed_parser(Experiment, text)))


def _evaluate_parser() -> ArgumentParser:
    text = "Measure by a fixed standard what the server can reconstruct: the edition sets attack, images and seeds."
    return _add_pdf(_typed_parser(Evaluating, text))


def _train_parser() -> ArgumentParser:
    text = "Train a model on these images by federated learning, and score it in every round."
    return _add_pdf(_typed_parser(Training, text))


def _frontier_parser() -> ArgumentParser:
    text = "Train and audit with each defense and strength, plot leakage against accuracy, and recommend a setting."
    return _add_pdf(_add_fail_on(_typed_parser(Frontier, text)))


def _add_fail_on(parser: ArgumentParser) -> ArgumentParser:
    parser.add_argument(
        "--fail-on",
        type=Literal["leaks", "inconclusive"] | None,
        default=None,
        help="for pipelines: leaks: exit with status 3 if a tested defense leaks (without one: if the model leaks); "
        "inconclusive: also exit with 4 if a result is inconclusive; unset: 0 whatever was found",
    )
    return parser


def _typed_parser(experiment: type[Options], description: str) -> ArgumentParser:
    """Return a run's parser: all options of a typed experiment, with the data as positional argument."""
    parser = _parser(description)
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    _add_options(parser, experiment, ("data",), "?")
    return _add_quiet(_add_dry_run(parser))


def _parser(description: str) -> ArgumentParser:
    return HelpParser(allow_abbrev=False, exit_on_error=False, description=description)


def _add_options(
    parser: ArgumentParser,
    experiment: type[Options],
    positional: tuple[str, ...] = (),
    nargs: Literal["?", "*"] | None = None,
) -> None:
    """Add all options of a typed experiment to a parser.

    Args:
        parser: the parser.
        experiment: the typed experiment's class.
        positional: names of the positional arguments.
        nargs: ``"?"`` if they are optional, ``"*"`` if there may be several, ``None`` if each is required once.
    """
    groups: dict[str, Any] = {"": parser}
    for name, entry in options_in(experiment).items():
        if name in positional:
            # If it is omitted, its default must not override the value from --config.
            extra: dict[str, Any] = {} if nargs is None else {"nargs": nargs, "default": SUPPRESS}
            text = f"{entry.help} (default: {entry.default})" if nargs == "?" else entry.help
            parser.add_argument(name, type=str, help=text, **extra)
        elif entry.help:
            if entry.group not in groups:
                groups[entry.group] = parser.add_argument_group(entry.group)
            of = groups[entry.group]
            of.add_argument(option_of(name), help=entry.help, default=entry.default, **_kind_of(entry.kind))


def _kind_of(annotation: Any) -> dict[str, Any]:
    """Return the ``add_argument`` keywords for a type: a switch for a bool, an on-off switch for an optional bool."""
    if annotation is bool:
        return {"action": "store_true"}
    if annotation == bool | None:
        return {"action": ActionYesNo(yes_prefix="", no_prefix="no-")}
    return {"type": annotation}


def _check_model_parser() -> ArgumentParser:
    parser = _parser("Show what a model's updates reveal by construction and which attacks apply. Needs no images.")
    _add_options(parser, Inspection, ("model",))
    return _add_show_paths(parser)


def _record_parser() -> ArgumentParser:
    parser = _parser(
        "Make a record of a real update from the model's states before and after a client's local training. "
        "Only tensors are read, and no code in the files runs."
    )
    _add_options(parser, Recording, ("before", "after"))
    return _add_quiet(parser)


def _inspect_parser() -> ArgumentParser:
    parser = _parser(
        "Show what a record holds. With --truth and --model, repeat the training, compare parameters and buffers, and "
        "name the cause if they differ. Exit status 2 if the record is wrong."
    )
    _add_options(parser, Looking, ("record",))
    return _add_show_paths(parser)


def _forget_parser() -> ArgumentParser:
    parser = _parser("Delete the truth files (private images and labels) in a folder of records. Records stay.")
    _add_options(parser, Forgetting, ("folder",))
    return _add_show_paths(parser)


def _add_show_paths(parser: ArgumentParser) -> ArgumentParser:
    text = "show names of files and folders in messages even if they go to a file or pipe instead of a terminal"
    parser.add_argument("--show-paths", action="store_true", help=text)
    return _add_json(parser)


def _add_json(parser: ArgumentParser) -> ArgumentParser:
    if not any("--json" in action.option_strings for action in parser._actions):
        text = "print the result as JSON on standard output, an error too; messages go to standard error"
        parser.add_argument("--json", action="store_true", help=text)
    return parser


def _add_dry_run(parser: ArgumentParser) -> ArgumentParser:
    text = "print the plan: jobs, estimated time and memory, and what is done already; run and write nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)
    return parser


def _add_quiet(parser: ArgumentParser) -> ArgumentParser:
    parser.add_argument("--quiet", action="store_true", help="print no progress and no table")
    return _add_show_paths(parser)


def _add_pdf(parser: ArgumentParser) -> ArgumentParser:
    text = "also print each page as PDF, with the Chromium or Chrome of this machine; an audit's is one page"
    parser.add_argument("--pdf", action="store_true", help=text)
    return parser


def _demo_parser() -> ArgumentParser:
    parser = _parser("Audit the embedded samples with and without a defense, offline.")
    _add_options(parser, Demo)
    return _add_pdf(_add_quiet(_add_dry_run(parser)))


def _compare_parser() -> ArgumentParser:
    parser = _parser("Compare audits: which setting exposes the fewest images, and in what the runs differ.")
    parser.add_argument("runs", nargs="+", type=str, help="run directories of audits, two or more")
    parser.add_argument("--page", type=str | None, default=None, help="file for a page in HTML, which shows no image")
    parser.add_argument("--csv", type=str | None, default=None, help="file for a line per cell as CSV")
    return _add_pdf(_add_quiet(parser))


def _list_parser() -> ArgumentParser:
    parser = HelpParser(
        exit_on_error=False, description="List the parts that an audit can use, or explain one of them."
    )
    parser.add_argument("what", nargs="?", default=None, help=f"{', '.join(ROLES)}, or a part's name; default: all")
    return _add_json(parser)


def _reproduce_parser() -> ArgumentParser:
    parser = _parser(
        "Run the paper's experiments on the available data sets, and write their tables. "
        "Repeat the command to continue an interrupted run."
    )
    _add_options(parser, Studies, ("experiment",), "*")
    return _add_quiet(_add_dry_run(parser))


def mapping_of(path: str) -> dict[str, str]:
    """Return a YAML file's mapping of names to texts.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    found = read_yaml(path)
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in found.items()):
        raise InputError(f"'{path}' is no mapping: write one line for each name, 'name: path'")
    return found


def _report_parser() -> ArgumentParser:
    parser = HelpParser(exit_on_error=False, description="Rebuild summary and pages from the rows in a run directory.")
    parser.add_argument("out", type=str, help="run directory")
    parser.add_argument("--quiet", action="store_true", help="print no table")
    return _add_pdf(_add_show_paths(parser))
