"""The identity of a run: its settings, its tensors, and the user's code behind them."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.user_code.modules import UNKNOWN, brought, noticed, own_modules, shown_name
from medpfl.core.user_code.sources import modules_of
from medpfl.isolation.parent import Isolated
from medpfl.models.user import UserModel
from medpfl.runs.cloak import Cloak
from medpfl.runs.directory import RunDirectory
from medpfl.runs.study_key import Key

__all__ = ["Code", "Identity", "fingerprint", "layers_of", "unchanged"]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of named tensors; equal tensors have equal hashes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).double().numpy().tobytes())
    return digest.hexdigest()[:16]


def layers_of(network: nn.Module) -> str:
    """Return a hash of a network's layers, since networks with equal weights may compute different things."""
    layers = re.sub(r" at 0x[0-9a-f]+", "", str(network))
    return hashlib.sha256(layers.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Code:
    """The user's code behind a run's parts, as it was when the run began.

    Attributes:
        parts: the run's parts: attacks, defenses, the model and its network, partition, data sources.
        modules: digest and part name for each of the user's modules.
        imported: the user's modules imported by then, used by the run or not.
        since: position in the list of imports where the run began.
    """

    parts: tuple[Any, ...]
    modules: Mapping[str, tuple[str, str]]
    imported: frozenset[str]
    since: int

    @classmethod
    def of(cls, parts: Callable[[], Sequence[Any]]) -> Code:
        """Record the code of a run's parts as it is now.

        Args:
            parts: function that builds the parts; modules imported meanwhile count as imported by the run.

        Raises:
            InputError: if a file changed after this process imported it.
        """
        imported, since, made = own_modules(), len(noticed()), parts()
        modules: dict[str, tuple[str, str]] = {}
        for part in made:
            for name, digest in _modules(part).items():
                modules.setdefault(name, (digest, _called(part)))
        return cls(tuple(made), modules, frozenset(imported), since)

    def entry(self, key: Key) -> dict[str, str]:
        """Return the digests for the run's identity, under keyed hashes of module names (a name may be a patient's)."""
        found: dict[str, str] = {}
        for name, (digest, _) in sorted(self.modules.items()):
            tag = key.tag("module", name.replace("~", ""))
            own = f"{UNKNOWN}{secrets.token_hex(8)}" if digest.startswith(UNKNOWN) else digest
            found[tag] = "-".join(filter(None, [found.get(tag), own]))
        return found

    def difference(self, old: Mapping[str, str], key: Key) -> list[str]:
        """Return sentences on how the code differs from another run of the same parts."""
        said, new = [], self.entry(key)
        for name, (digest, part) in sorted(self.modules.items()):
            tag = key.tag("module", name.replace("~", ""))
            if digest.startswith(UNKNOWN):
                why = digest.removeprefix(UNKNOWN)
                said.append(f"the code of {part} cannot be compared because {why}: put it into a .py file")
            elif old.get(tag) != new[tag]:
                said.append(f"the code of {part} changed (module {shown_name(name)})")
        if not said and (gone := len(old.keys() - new.keys())):
            said.append(f"the code of a part changed ({gone} of its modules are no longer imported)")
        return said

    def changes(self) -> str:
        """Return a sentence on the first change since the run began, or an empty string."""
        if not self.modules:
            return ""
        # A process that has ended cannot be asked, but it ran the code that it had imported: no change.
        parts = [part for part in self.parts if not (isinstance(part, Isolated) and part.worker.ended)]
        try:
            now = {name: digest for part in parts for name, digest in _modules(part).items()}
        except InputError as error:
            return f"during the run, {error}"
        # A file given by its path is executed several times, so it may have changed and changed back meanwhile.
        loaded = dict(noticed(self.since))
        for name, (digest, part) in self.modules.items():
            if {now.get(name, digest), loaded.get(name, digest)} != {digest}:
                return f"the code of {part} changed (module {shown_name(name)}) during the run"
        apart = {name for part in parts if isinstance(part, Isolated) for name in now}
        if new := sorted((own_modules() | apart) - self.imported - set(self.modules)):
            brought(next(iter(self.modules)), new)
            return (
                f"the module {shown_name(new[0])} was imported during the run, by its name in a text, so it could not "
                "be known before (write an import statement in the part's file)"
            )
        return ""


def _modules(part: Any) -> dict[str, str]:
    if isinstance(part, Isolated):
        return part.modules()
    return modules_of([part, part.maker()] if isinstance(part, UserModel) else part)


def _called(part: Any) -> str:
    """Return a part's name for messages."""
    if isinstance(part, UserModel):
        return f"the model {re.split(r'[^0-9A-Za-z_]', part.call, maxsplit=1)[0]}"
    return f"the model {type(part).__name__}" if isinstance(part, nn.Module) else type(part).__name__


class Identity(dict[str, Any]):
    """The settings, data and code behind a run's rows, as stored in ``run.json``."""

    def __init__(self, entries: Mapping[str, Any], code: Code, key: Key) -> None:
        self.code, self.key, self.cloak = code, key, Cloak(key, code.parts)
        super().__init__({**self.cloak(dict(entries)), "sources": code.entry(key), "key": key.tag("key", "")})

    def told(self, old: Mapping[str, Any]) -> list[str]:
        """Return sentences on how another run differs. Of a run with another key, only that is known."""
        if "key" in old and old["key"] != self["key"]:
            return [f"it was made with another key than the one in {self.key.where}: put its own key back there"]
        sources = old.get("sources")
        if not isinstance(sources, dict) or not all(isinstance(digest, str) for digest in sources.values()):
            return ["an earlier version of MedPFL made it"]
        code = self.code.difference(sources, self.key)
        changed = [k for k in self if old.get(k) != self[k]] + [k for k in old if k not in self]
        # Other parts have other code, so a code difference alone is not worth a sentence.
        others = [k for k in changed if k != "sources"]
        parts = {"model", "attacks", "defenses", "defense", "partition", "data"} & set(others)
        said = [] if parts and not set(sources) & set(self["sources"]) else code
        return said + ([f"other {', '.join(others[:4])}"] if others else [])


@contextlib.contextmanager
def unchanged(code: Code, directory: RunDirectory | None) -> Iterator[None]:
    """Refuse the rows made in the block, now and later, if the user's code changed meanwhile.

    Raises:
        InputError: if the code changed.
    """
    try:
        yield
    except BaseException:
        _refuse(code, directory)
        raise
    if why := _refuse(code, directory):
        again = "" if directory is None else " with --force, or name another --out"
        raise InputError(
            f"{why}: the run's rows mix two versions of the code and are refused. Repeat the command{again}"
        )


def _refuse(code: Code, directory: RunDirectory | None) -> str:
    """Return why the rows are refused, or an empty string; note it in the directory, without module names."""
    why = code.changes()
    if why and directory is not None:
        directory.note(refused="the code of a part changed during the run")
    return why
