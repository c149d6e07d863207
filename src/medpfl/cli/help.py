"""The texts of ``--help``: commands and options by theme, examples, and exit statuses."""

from __future__ import annotations

from argparse import SUPPRESS, Action
from collections.abc import Iterable, Iterator
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser

__all__ = ["EXAMPLES", "STATUSES", "THEMES", "HelpParser", "overview"]

THEMES = {
    "Audit": {
        "demo": "audit the embedded samples, offline",
        "audit": "audit a folder of medical images, a recorded update, or the embedded samples",
        "evaluate": "measure leakage by a fixed standard, to compare and to cite",
        "check-model": "show what a model's updates reveal and which attacks apply; needs no images",
        "frontier": "compare defenses and strengths by leakage and accuracy, and recommend a setting",
        "compare": "show several audits side by side: on the terminal, as CSV and as a page",
    },
    "Updates of a running federation": {
        "record": "make a record of a real update from two checkpoints",
        "inspect": "show what a record of an update holds, and whether it is right",
        "forget": "delete the private images that were kept beside records",
    },
    "Training and the paper": {
        "train": "train a model by federated learning, with or without a defense",
        "reproduce": "run the paper's experiments on its three data sets",
    },
    "Parts and results": {
        "list": "list all attacks, defenses, models, metrics and data sources",
        "report": "rebuild the summary and pages of a run directory from its rows",
    },
}
"""All commands with their help, by theme."""

EXAMPLES = {
    "": ("demo", "audit path/to/images --model path/to/model.py:make_model --out runs/mine", "list attacks"),
    "audit": (
        "audit path/to/images --model \"LeNet('idlg')\" --attack iDLG --images 8 --out runs/mine",
        "audit path/to/images --model path/to/model.py:make_model --weights model.safetensors --dry-run",
        'audit path/to/images --defense "LaplaceNoise(scale=geom(0.001, 0.1, 3))" --fail-on leaks',
        "audit path/to/images --model runs/train --realism --out runs/realism",
        "audit records/update-1.safetensors --model path/to/model.py:make_model",
    ),
    "check-model": ('check-model "ResNet(18)" --image-shape 1,64,64', "check-model path/to/model.py:make_model --json"),
    "compare": ("compare runs/a runs/b --page runs/comparison.html",),
    "evaluate": (
        "evaluate path/to/images --model path/to/model.py:make_model --out runs/standard",
        'evaluate samples --model "LeNet(\'idlg\')" --defense "LaplaceNoise(scale=0.01)"',
    ),
    "demo": ("demo", "demo --images 4 --out runs/demo"),
    "forget": ("forget records",),
    "frontier": (
        'frontier images.npz --defense "LaplaceNoise(scale=geom(0.0001, 0.01, 5))" --limit "asr<=0.05" --out runs/f',
    ),
    "inspect": ("inspect records/update-1.safetensors --model model.py:make_model",),
    "list": ("list", "list defenses", "list iDLG"),
    "record": ("record before.pt after.pt --truth path/to/images --batch-size 8 --learning-rate 0.1",),
    "report": ("report runs/mine",),
    "reproduce": (
        "reproduce --data path/to/sets --out runs/paper",
        "reproduce noise --data samples --quick --part iDLG",
    ),
    "train": ("train path/to/images --clients 4 --rounds 20 --out runs/train",),
}
"""Examples by command, without the program's name."""

STATUSES = {
    0: "done, whatever was found (unless --fail-on)",
    2: "wrong input, a wrong record, or an experiment that failed",
    3: "--fail-on: a leak was found",
    4: "--fail-on inconclusive: a result is inconclusive",
    130: "interrupted; with --out, the same command continues where it stopped",
    141: "the reader of the output closed it",
}
"""Exit statuses of all commands."""

_GROUPS = {
    "victims": "Images",
    "cohort": "Images and clients",
    "reading": "Images",
    "plan": "Local training of a client",
    "schedule": "Training over rounds",
    "criteria": "Verdict",
    "scale": "Amount of work",
    "run": "Run",
}
_OUTPUT = (
    "--help",
    "--config",
    "--print_config",
    "--quiet",
    "--json",
    "--show-paths",
    "--fail-on",
    "--dry-run",
    "--pdf",
)
_MARGIN, _COLUMN = 2, 26


class HelpParser(ArgumentParser):
    """A parser with help by theme."""

    def format_help(self, formatter: Any = None) -> str:
        """Return the help text of a command, or that of all of them; `formatter` is not used."""
        name = self.prog.rpartition(" ")[2]
        return of_command(self, name) if name in EXAMPLES else overview()


def overview() -> str:
    """Return the help text of ``medpfl --help``."""
    text = "Measure which images a federated-learning server can reconstruct from a hospital's updates."
    lines = ["usage: medpfl COMMAND ...", "", *_wrapped(text)]
    for theme, commands in THEMES.items():
        lines += ["", f"{theme}:", *(line for entry in commands.items() for line in _entry(*entry))]
    lines += ["", "More:"]
    more = {"COMMAND --help": "a command's options, with examples", "--version": "the version"}
    lines += [line for entry in more.items() for line in _entry(*entry)]
    return "\n".join([*lines, *_examples(""), *_statuses()]) + "\n"


def of_command(parser: ArgumentParser, name: str) -> str:
    """Return the help text of a command."""
    positional = [action for action in parser._actions if not action.option_strings]
    words = " ".join(f"[{a.dest}]" if a.nargs in ("?", "*") else a.dest for a in positional)
    lines = [f"usage: medpfl {name} {words} [options]".replace("  ", " "), "", *_wrapped(parser.description or "")]
    lines += _examples(name)
    for theme, actions in _themes(parser).items():
        lines += ["", f"{theme}:", *(line for action in actions for line in _entry(_names(action), _help(action)))]
    return "\n".join([*lines, *_statuses()]) + "\n"


def _themes(parser: ArgumentParser) -> dict[str, list[Action]]:
    """Return the parser's arguments by theme: those of the command itself first, those of its output last."""
    themes: dict[str, list[Action]] = {"Arguments and options": []}
    output: list[Action] = []
    for group in parser._action_groups:
        for action in group._group_actions:
            if action.help == SUPPRESS:
                continue
            theme = _GROUPS.get(group.title or "", "Arguments and options")
            own = output if set(action.option_strings) & set(_OUTPUT) else themes.setdefault(theme, [])
            own.append(action)
    return {theme: actions for theme, actions in (*themes.items(), ("Output and pipelines", output)) if actions}


def _names(action: Action) -> str:
    """Return an argument as it is written, with a name for its value."""
    if not action.option_strings:
        return action.dest
    if "--print_config" in action.option_strings:
        return "--print-config"
    name = action.option_strings[-1] if action.option_strings[0] == "-h" else action.option_strings[0]
    if action.nargs == 0 or type(action).__name__ in ("ActionYesNo", "_ActionPrintConfig"):
        return f"{name}, --no-{name[2:]}" if type(action).__name__ == "ActionYesNo" else name
    choices = [str(word) for word in _choices(getattr(action, "_typehint", None))]
    return f"{name} {'|'.join(choices) or action.dest.upper()}"


def _choices(kind: Any) -> list[Any]:
    """Return the words of a literal type, also inside an optional one."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [word for one in get_args(kind) if get_origin(one) is Literal for word in get_args(one)]


def _help(action: Action) -> str:
    if action.dest == "help":
        return "show this help"
    if "--print_config" in action.option_strings:
        return "print the command's options as YAML, for --config, and run nothing"
    text, default = action.help or "", _default(action.default)
    shown = default and action.option_strings and "unset:" not in text and "if omitted:" not in text
    return f"{text} (default: {default})" if shown else text


def _default(value: Any) -> str:
    if value is None or value is False or value in ([], SUPPRESS):
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _entry(name: str, text: str) -> Iterator[str]:
    """Yield the lines of a name with its text in a column beside it."""
    width = max(40, _width() - _COLUMN)
    lines, head = wrap(text, width, break_on_hyphens=False) or [""], " " * _MARGIN + name
    if len(head) > _COLUMN - 2:
        yield head
        head = ""
    yield head.ljust(_COLUMN) + lines[0]
    yield from (" " * _COLUMN + line for line in lines[1:])


def _examples(name: str) -> Iterable[str]:
    return ["", "Examples:", *(f"  medpfl {words}" for words in EXAMPLES[name])]


def _statuses() -> Iterable[str]:
    return ["", "Exit status:", *(line for code, text in STATUSES.items() for line in _entry(str(code), text))]


def _wrapped(text: str) -> list[str]:
    return wrap(text, _width())


def _width() -> int:
    return min(get_terminal_size((100, 24)).columns, 120)
