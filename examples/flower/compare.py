"""Compare the sites' records with the server's: each update must be equal in every byte."""

import sys
from pathlib import Path

from medpfl import Record


def content(record: Record) -> dict[str, bytes]:
    """Return the bytes of everything in a record's update."""
    return {
        name: tensor.numpy().tobytes()
        for name, tensor in {**record.update.tensors, **(record.update.buffers or {})}.items()
    }


def matches(sites: list[Path], server: list[Path]) -> dict[Path, Path | None]:
    """Return each record of a site with the server's record of the same bytes and round, or with ``None``."""
    seen = {path: Record.load(path) for path in server}
    found: dict[Path, Path | None] = {}
    for path in sites:
        own = Record.load(path)
        same = [p for p, one in seen.items() if content(one) == content(own) and one.source.round == own.source.round]
        found[path] = same[0] if len(same) == 1 else None
    return found


if __name__ == "__main__":
    out = Path(sys.argv[1])
    pairs = matches(
        sorted(out.glob("site-*/updates/*.safetensors")), sorted(out.glob("server/updates/*/*.safetensors"))
    )
    for own, other in pairs.items():
        print(own.relative_to(out), "=", "no record of the server" if other is None else other.relative_to(out))
    if not pairs:
        print(f"there are no records of sites in '{out}': name the folder that deploy.py wrote")
    elif None in pairs.values():
        print("a mod acted after the recorder: put record(...) first in the client's list of mods")
    sys.exit(0 if pairs and None not in pairs.values() else 1)
