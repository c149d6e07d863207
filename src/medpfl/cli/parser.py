"""The command line's parser: typed experiments as options."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse import SUPPRESS, ActionYesNo, ArgumentParser

from medpfl.cli.help import THEMES, HelpParser
from medpfl.cli.words import option_of
from medpfl.core.experiments.evaluation import Evaluating
from medpfl.core.experiments.experiment import Demo, Experiment
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.inspection import Inspection
from medpfl.core.experiments.options import Options, options_in
from medpfl.core.experiments.recording import Forgetting, Looking, Recording
from medpfl.core.experiments.training import Training
from medpfl.core.versions import version_of
from medpfl.reproduction.scale import Studies

__all__ = ["COMMANDS", "ROLES", "options_of", "parser_of"]

ROLES = ("attacks", "defenses", "models", "metrics", "data")
COMMANDS = {name: text for commands in THEMES.values() for name, text in sorted(commands.items())}


def options_of(parser: ArgumentParser, command: str) -> list[str]:
    """Return the spellings of a command's options."""
    assert parser._subcommands_action is not None
    own = parser._subcommands_action._name_parser_map[command]
    return [text for action in own._actions for text in action.option_strings if text.startswith("--")]


def parser_of() -> ArgumentParser:
    """Return the parser for all commands."""
    parser = HelpParser(
        prog="medpfl",
        allow_abbrev=False,
        exit_on_error=False,
        description="Measure which images a federated-learning server can reconstruct from a hospital's updates.",
        version=version_of("medpfl"),
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


def _report_parser() -> ArgumentParser:
    parser = HelpParser(exit_on_error=False, description="Rebuild summary and pages from the rows in a run directory.")
    parser.add_argument("out", type=str, help="run directory")
    parser.add_argument("--quiet", action="store_true", help="print no table")
    return _add_pdf(_add_show_paths(parser))
