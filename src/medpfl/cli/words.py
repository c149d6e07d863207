"""The words of the command line, and the parser's errors in its terms."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from medpfl.core.errors import InputError, nearest
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.options import options_in
from medpfl.core.experiments.training import Training

__all__ = ["option_of", "plain", "spelled", "spelled_names"]

_REPEATED = ("--attack", "--defense", "--grant", "--limit", "--part", "--sends")
_NONE = ("--sends", "nothing")
"""The option and value that stand for an empty list."""


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
        "compare.runs": "the run directories, two or more",
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
