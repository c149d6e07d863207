"""Results as JSON data, for ``--json``. File names in them are those of the run directory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["print_json", "result"]


def print_json(content: dict[str, Any]) -> None:
    """Print an object on standard output."""
    print(json.dumps(content, indent=1))


def result(found: Any) -> dict[str, Any]:
    """Return the result of an audit, a training, a frontier, a federation, rounds, or a reproduction as JSON data.

    Every result has ``kind``, ``text`` (sentences) and ``files`` (written files).
    """
    from medpfl.auditing.report import Report
    from medpfl.federation.result import Federation
    from medpfl.reproduction.collection import Reproduction
    from medpfl.tradeoff.result import FrontierResult
    from medpfl.training.leakage import Leakage
    from medpfl.training.report import Trained

    match found:
        case Report():
            return _told("audit", found, cells=_dicts(found.summary), settings=found.settings.to_dict())
        case Leakage():
            reports = {str(number): _dicts(report.summary) for number, report in found.reports.items()}
            return _told("leakage", found, rounds=reports, accuracies=found.accuracies)
        case Federation():
            return _told("federation", found, **found.overview.to_dict())
        case Trained():
            return _told("training", found, rounds=_dicts(found.rows), summary=found.summary, settings=found.settings)
        case FrontierResult():
            return _told("frontier", found, **found.to_dict())
        case Reproduction():
            files = [*found.tables, *found.legacy, *found.pictures]
            gaps = [{"text": str(gap), "failed": gap.failed} for gap in found.gaps]
            return {"kind": "reproduction", "rows": found.rows, "gaps": gaps, "files": _paths(files)}
    raise TypeError(f"no result: {found!r}")


def _told(kind: str, found: Any, **content: Any) -> dict[str, Any]:
    return {"kind": kind, "text": str(found), **content, "files": _paths(found.pages)}


def _dicts(rows: Iterable[Any]) -> list[dict[str, Any]]:
    return [row.to_dict() for row in rows]


def _paths(files: Iterable[Path]) -> list[str]:
    return [str(path) for path in files]
