"""Reference pages made from the code: commands from the parser, Python from names and docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medpfl import _PLACES as PLACES
from medpfl.cli.parser import COMMANDS, parser_of

__all__ = ["commands", "members", "pages"]

SOURCE = Path(__file__).resolve().parent.parent / "src"
_NONE = ("==SUPPRESS==", None, False, [], ())


def pages() -> dict[str, str]:
    """Return all reference pages: name on the site, Markdown."""
    return {
        "reference/commands.md": commands(),
        "reference/api.md": _api(),
        "reference/attacks.md": _registry(
            "Attacks and their parts",
            "[Attacks](../attacks.md) has their formulas, and when each works.",
            {"Attacks": "medpfl.attacks", "Parts of gradient matching": "medpfl.attacks.matching"},
        ),
        "reference/defenses.md": _registry(
            "Defenses and aggregations",
            "[Defenses](../defenses.md) has their formulas, and how each was broken.",
            {"Defenses": "medpfl.defenses"},
        ),
        "reference/parts.md": _registry(
            "Models, data sources and metrics",
            "[Your own parts](../extending.md) shows how to add to them.",
            {"Models": "medpfl.models", "Data sources": "medpfl.data", "Metrics": "medpfl.metrics"},
        ),
    }


def commands() -> str:
    """Return the page of all commands with their options, made from the command line's own parser."""
    parser = parser_of()
    known = parser._subcommands_action._name_parser_map
    lines = [
        "# Commands",
        "",
        "Made from the command line's parser. `medpfl COMMAND --help` prints the same.",
        "",
        "| command | use |",
        "| --- | --- |",
        *(f"| [`{name}`](#medpfl-{name}) | {COMMANDS[name]} |" for name in known),
        "",
    ]
    for name, command in known.items():
        lines += [f"## medpfl {name}", "", command.description or COMMANDS[name], ""]
        for title, actions in _groups(command):
            lines += [f"### {name}: {title}", ""] if title else []
            lines += ["| option | default | meaning |", "| --- | --- | --- |"]
            lines += [_row(action) for action in actions]
            lines.append("")
    return "\n".join(lines)


def _groups(command: Any) -> Iterator[tuple[str, list[Any]]]:
    """Yield the groups of a command's options: a title, ``""`` for those without a group of their own; the options."""
    plain, titled = [], []
    for group in command._action_groups:
        shown = [action for action in group._group_actions if action.help and action.help != "==SUPPRESS=="]
        if group.title in ("positional arguments", "optional arguments", "options", None):
            plain += shown
        elif shown:
            titled.append((group.title, shown))
    yield from [("", plain), *titled] if plain else titled


def _row(action: Any) -> str:
    options = [option.replace("_", "-") for option in action.option_strings if not option.endswith("+")]
    name = ", ".join(options) or action.dest.upper()
    known = action.default not in _NONE and action.dest not in ("help", "print_config")
    default = action.default if isinstance(action.default, list | tuple) else [action.default]
    default = ", ".join("`" + str(value).replace("|", "\\|") + "`" for value in default) if known else ""
    text = (action.help or "").replace(" (default: %(default)s)", "")
    return f"| `{name}` | {default} | {_cell(text)} |"


def _cell(text: str) -> str:
    """Return a text that may stand in a cell of a table."""
    return re.sub(r"([|*_\[])", r"\\\1", " ".join(text.split()).replace("<", "&lt;"))


def _api() -> str:
    names = {name: f"medpfl.{place}.{name}" for name, place in PLACES.items()}
    calls = [name for name in names if name[0].islower()]
    lines = ["# Python", "", "All public names of `medpfl`, from their docstrings.", "", "## Functions", ""]
    lines += [line for name in calls for line in (f"::: {names[name]}", "")]
    lines += ["## Classes", ""]
    lines += [line for name in names if name not in calls for line in _directive(names[name])]
    return "\n".join(lines)


def _registry(title: str, introduction: str, packages: dict[str, str]) -> str:
    lines = [f"# {title}", "", f"{introduction} This page is made from the docstrings.", ""]
    for heading, package in packages.items():
        lines += [f"## {heading}", ""]
        lines += [line for name in members(package) for line in (f"::: {name}", "")]
    return "\n".join(lines)


def _directive(name: str) -> tuple[str, ...]:
    """Return the lines that show a class with its public methods and properties."""
    return (f"::: {name}", "    options:", "      members: null", "      show_bases: false", "")


def members(package: str) -> list[str]:
    """Return the full names of a package's public parts, in the order of its ``__all__``."""
    tree = ast.parse((SOURCE / package.replace(".", "/") / "__init__.py").read_text())
    places: dict[str, str] = {}
    public: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            places |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            public = ast.literal_eval(node.value)
    return [places[name] for name in public if name in places]
