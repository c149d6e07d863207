"""The catalog of parts for ``medpfl list``."""

from __future__ import annotations

from importlib import import_module
from inspect import getdoc
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medpfl.cli.parser import ROLES
from medpfl.core.errors import InputError, nearest
from medpfl.core.spec import registry, signature, summary
from medpfl.core.threat import GRANTS
from medpfl.inputs.spelling import names_in

__all__ = ["Catalog", "catalog", "check_role", "explanation", "show"]

_PLACES = ("attacks.matching", *ROLES)


class Catalog(NamedTuple):
    """The parts that were asked for, by role and name.

    Attributes:
        roles: the parts.
        one: True if a single part was asked for by its name.
        grants: grants with their meaning, if all parts were asked for.
    """

    roles: dict[str, dict[str, Any]]
    one: bool = False
    grants: dict[str, str] = {}  # noqa: RUF012  (never changed)

    def to_dict(self) -> dict[str, Any]:
        """Return names, first lines and arguments as JSON data; for a single part, its whole explanation."""

        def told(name: str, member: Any) -> dict[str, str]:
            text = {"explanation": explanation(name, member)} if self.one else {}
            return {"summary": summary(member), "arguments": signature(member), **text}

        roles = {role: {name: told(name, one) for name, one in parts.items()} for role, parts in self.roles.items()}
        return {"kind": "list", "roles": roles, "grants": self.grants, "status": 0}


def check_role(what: str | None) -> None:
    """Check that there is such a role or part, before torch is imported.

    Raises:
        InputError: there is none.
    """
    names = [name for place in _PLACES for name in names_in(place)]
    if what and what not in (*ROLES, *names):
        raise InputError(f"there is no role or part '{what}'; {nearest(what, [*ROLES, *names])}")


def catalog(what: str | None) -> Catalog:
    """Return all parts, those of a role, or one part."""
    parts = {place: registry(import_module(f"medpfl.{place}")) for place in _PLACES}
    if what and what not in ROLES:
        return Catalog({place: {what: own[what]} for place, own in parts.items() if what in own}, one=True)
    roles = [what] if what else ROLES
    return Catalog({role: parts[role] for role in roles}, grants={} if what else dict(GRANTS))


def show(found: Catalog) -> None:
    """Print parts with their arguments, or explain a single one."""
    if found.one:
        ((name, member),) = list(found.roles.values())[-1].items()
        print(explanation(name, member))
        return
    console = Console(highlight=False)
    for role, parts in found.roles.items():
        table = Table(box=None, show_header=False, title=role.capitalize(), title_justify="left")
        for name, member in parts.items():
            table.add_row(f"  {name}", Text(summary(member)))
            if arguments := signature(member):
                table.add_row("", Text(arguments, style="dim"))
        console.print(table)
    if found.grants:
        console.print("Grants", style="italic")
        for grant, meaning in found.grants.items():
            console.print(f"  {grant:<12}{meaning}")


def explanation(name: str, member: Any) -> str:
    """Return a part's name with its arguments, and its whole docstring."""
    arguments = signature(member)
    return "\n\n".join([name + (f"({arguments})" if arguments else ""), getdoc(member) or ""])
