"""The catalog of parts for ``medpfl list``."""

from __future__ import annotations

from importlib import import_module
from inspect import getdoc
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medpfl.cli.parser import ROLES
from medpfl.core.errors import InputError, nearest
from medpfl.core.spec import registry, signature, summary
from medpfl.core.threat import GRANTS
from medpfl.inputs.spelling import names_in

__all__ = ["explanation", "show"]


def show(what: str | None) -> None:
    """Print all parts or those of a role, with their arguments, or explain one part.

    Raises:
        InputError: `what` is neither a role nor a part.
    """
    places = ("attacks.matching", *ROLES)
    names = [name for place in places for name in names_in(place)]  # read before torch is imported
    if (only := what or "") and only not in (*ROLES, *names):
        raise InputError(f"there is no role or part '{only}'; {nearest(only, [*ROLES, *names])}")
    parts = {place: registry(import_module(f"medpfl.{place}")) for place in places}
    each = {name: member for members in parts.values() for name, member in members.items()}
    if only in each:
        print(explanation(only, each[only]))
        return
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


def explanation(name: str, member: Any) -> str:
    """Return a part's name with its arguments, and its whole docstring."""
    arguments = signature(member)
    return "\n\n".join([name + (f"({arguments})" if arguments else ""), getdoc(member) or ""])
