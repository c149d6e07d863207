"""A federation's folders: which files are records, their sites and rounds, and the truth behind each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medpfl.core.errors import InputError, private
from medpfl.core.messages import about
from medpfl.core.records.masked import Masked
from medpfl.core.records.record import Record
from medpfl.core.records.truth import FOLDER, Truth, digest_of, truth_beside
from medpfl.inputs.spelling import is_pattern, is_there, matching, path_of
from medpfl.runs.study_key import Key

__all__ = ["MEAN", "NAME", "SITE", "Entry", "Files", "entries", "files_at", "is_federation", "sites_of", "truth_of"]

MEAN = "mean"
"""Name under which a record is shown that holds the mean of several clients' updates, of no single site."""

SITE = re.compile(r"site-[0-9]{1,6}")
NAME = re.compile(rf"(?:{SITE.pattern}|{MEAN})(?:-round-[0-9]{{4,6}})?(?:-[0-9a-f]{{8}})?")
"""Names of run directories, see `entries`; a name of another form may be a path."""

_SUFFIX = ".safetensors"
_DEPTH = ("*", "*/*", "*/*/*")


@dataclass(frozen=True)
class Entry:
    """One record of a federation.

    Attributes:
        site: name under which the site is shown, such as ``site-1``.
        round: the federation's round, if the record states it.
        name: name of its run directory and its page; it contains no name of a file or folder.
        path: the record's file.
        truth: its truth file, or a folder with its images; for a mean, the truth files of all clients; ``None`` if
            there is none.
    """

    site: str
    round: int | None
    name: str
    path: Path
    truth: Path | tuple[Path, ...] | None = None

    def __str__(self) -> str:
        return self.site if self.round is None else f"{self.site}, round {self.round}"


@dataclass(frozen=True)
class Files:
    """The files of a federation: records, and masked messages, which no audit can attack alone."""

    records: tuple[Path, ...]
    masked: tuple[Path, ...] = ()


def is_federation(data: object) -> bool:
    """Return True if the data is a pattern for files, a folder that holds records, or a masked message."""
    if not isinstance(data, str | Path):
        return False
    if not is_there(str(data)):
        return is_pattern(str(data))
    place = path_of(data)
    return Masked.is_one(place) or (
        place.is_dir() and any(_kind(path) for depth in _DEPTH for path in _in_folder(place, depth + _SUFFIX))
    )


def files_at(given: str | Path | Sequence[str | Path]) -> Files:
    """Return the records and masked messages at a path, a folder, a pattern such as ``site-*/round-*``, or several.

    Truth files are left out. In a folder, so are all other files; a pattern or a path must name no other file.

    Raises:
        InputError: a file is something else, or there is no record.
    """
    records: list[Path] = []
    masked: list[Path] = []
    strangers: list[Path] = []
    for one in [given] if isinstance(given, str | Path) else given:
        place, whole = path_of(one), False
        if place.is_dir():
            found, whole = list(_in_folder(place, "**/*" + _SUFFIX)), True
        elif is_there(str(one)):
            found = [place]
        else:
            found = matching(str(one))
        for path in sorted(found):
            kind = None if FOLDER in path.parts or not path.is_file() else _kind(path)
            about(path.parent)
            if kind:
                (records if kind == "record" else masked).append(path)
            elif not whole and FOLDER not in path.parts and path.is_file():
                strangers.append(path)
    if strangers:
        more = "" if len(strangers) == 1 else f" (and {len(strangers) - 1} more)"
        raise InputError(f"'{private(strangers[0])}' is no record{more}: give a pattern that names records only")
    if not records and not masked:
        where = ", ".join(f"'{private(one)}'" for one in ([given] if isinstance(given, str | Path) else given))
        raise InputError(f"there is no record at {where or 'an empty list'}: check the pattern, and put it in quotes")
    return Files(tuple(dict.fromkeys(records)), tuple(dict.fromkeys(masked)))


def sites_of(folders: Iterable[Path], known: Mapping[str, str], key: Key) -> dict[Path, tuple[str, str]]:
    """Return each folder's keyed hash, and the name under which it is shown.

    A folder called ``site-3`` keeps its name; others may be named after a hospital or a patient and are numbered in
    their order.

    Args:
        folders: one folder for each site.
        known: names that an earlier call gave, by hash; they stay.
        key: the study's key.
    """
    places = {folder: key.tag("site", str(folder.resolve())) for folder in sorted(set(folders))}
    taken = set(known.values()) | {folder.name for folder in places}
    found: dict[Path, tuple[str, str]] = {}
    for folder, tag in places.items():
        used = set(known.values()) | {name for _, name in found.values()}
        name = known.get(tag) or (folder.name if SITE.fullmatch(folder.name) and folder.name not in used else None)
        if name is None:
            name = next(f"site-{i}" for i in range(1, len(taken) + len(places) + 2) if f"site-{i}" not in taken)
            taken.add(name)
        found[folder] = (tag, name)
    return found


def entries(rounds: Mapping[Path, int | None], sites: Mapping[Path, str]) -> list[Entry]:
    """Return the records in the order of sites and rounds, each with a name of its own.

    Args:
        rounds: each record's round, by path.
        sites: name of each record's site, by path.
    """
    plain = {path: f"{sites[path]}-round-{n:04d}" if n is not None else "" for path, n in rounds.items()}
    several = {name for name in plain.values() if list(plain.values()).count(name) > 1} | {""}
    made = []
    for path, number in rounds.items():
        name = plain[path]
        if name in several:
            name = f"{name or sites[path]}-{digest_of(path)[:8]}"
        made.append(Entry(sites[path], number, name, path))
    unequal = {one.name: one for one in made}.values()  # a copy of a record is no further record
    return sorted(unequal, key=lambda one: (_number(one.site), one.round is None, one.round or 0, one.name))


def _number(site: str) -> tuple[int, str]:
    return int(site.removeprefix("site-")) if SITE.fullmatch(site) else -1, site


def truth_of(entry: Entry, given: Path | None, clients: int = 1) -> Path | tuple[Path, ...] | None:
    """Return the truth behind a record: a truth file, or a folder with the site's images; ``None`` if there is none.

    For a mean, it is the truth files of its round, at any depth, if there is one for each client.

    For any other record, it is the first of these:

    1. The truth file of the same name in `given`, in its folder of the site's name, or in ``private-truth`` in one of
       both.
    2. The only truth file of the same round in the site's folder in `given`, or in ``private-truth`` there.
    3. The site's folder in `given`, if it holds images and no truth file.
    4. The truth file of the same name in ``private-truth`` beside the record.

    Args:
        entry: the record.
        given: folder with one truth for each site.
        clients: number of clients whose updates are averaged in the record.
    """
    path, same = entry.path, "" if entry.round is None else f"round-{entry.round:04d}-*{_SUFFIX}"
    if clients > 1:
        found = tuple(sorted(filter(Truth.is_one, (given or path.parent).rglob(same)))) if same else ()
        return found if len(found) == clients else None
    if given is not None:
        own = given / path.parent.name
        places = [own, own / FOLDER, given, given / FOLDER]
        for place in places:
            if Truth.is_one(place / path.name):
                return place / path.name
        for place in places[:2] if same else ():
            of_round = [one for one in place.glob(same) if Truth.is_one(one)]
            if len(of_round) == 1:
                return of_round[0]
        if own.is_dir() and not any(map(Truth.is_one, own.rglob("*" + _SUFFIX))):
            return own
    return truth_beside(path)


def _in_folder(folder: Path, pattern: str) -> Iterator[Path]:
    return (path for path in folder.glob(pattern) if FOLDER not in path.relative_to(folder).parts)


def _kind(path: Path) -> str:
    """Return ``"record"`` or ``"masked"``; an empty text for any other file."""
    return "record" if Record.is_one(path) else "masked" if Masked.is_one(path) else ""
