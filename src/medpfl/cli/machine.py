"""Results as JSON data, for ``--json``. File names in them are those of the run directory."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medpfl.core.errors import resolved
from medpfl.core.messages import may_show

__all__ = ["print_json", "result"]


def print_json(content: dict[str, Any]) -> None:
    """Print an object on standard output. Private words in it are hidden where messages hide them; NaN is null."""
    print(json.dumps(_plain(content, may_show(sys.stdout)), indent=1, allow_nan=False))


def _plain(content: Any, shown: bool) -> Any:
    match content:
        case dict():
            return {key: _plain(value, shown) for key, value in content.items()}
        case list() | tuple():
            return [_plain(value, shown) for value in content]
        case str():
            return resolved(content, shown)
        case float() if not math.isfinite(content):
            return None
        case _:
            return content


def result(found: Any) -> dict[str, Any]:
    """Return the result of an audit, of several, a training, a frontier, or a reproduction as JSON data.

    Every result has ``kind``, ``text`` (sentences) and ``files`` (written files).
    """
    from medpfl.assumptions.result import Realism
    from medpfl.auditing.report import Comparison, Report
    from medpfl.evaluation.run import Evaluation
    from medpfl.federation.result import Federation
    from medpfl.tradeoff.result import FrontierResult
    from medpfl.training.leakage import Leakage
    from medpfl.training.report import Trained

    match found:
        case Report():
            kind, content = "audit", {"cells": _dicts(found.summary), "settings": found.settings.to_dict()}
        case Evaluation():
            kind, content = "evaluation", found.to_dict()
        case Leakage():
            reports = {str(number): _dicts(report.summary) for number, report in found.reports.items()}
            kind, content = "leakage", {"rounds": reports, "accuracies": found.accuracies}
        case Realism():
            kind, content = "realism", found.to_dict()
        case Federation():
            kind, content = "federation", found.overview.to_dict()
        case Trained():
            content = {"rounds": _dicts(found.rows), "summary": found.summary, "settings": found.settings}
            kind = "training"
        case FrontierResult():
            kind, content = "frontier", found.to_dict()
        case Comparison():
            from medpfl.reporting.page.comparison import comparison_sentences, run_names

            names, runs = run_names(found.reports), [_dicts(report.summary) for report in found.reports]
            content = {"names": names, "runs": runs, "text": "\n".join(comparison_sentences(found.reports, names))}
            kind = "comparison"
        case _:
            return _of_reproduction(found)
    return {"kind": kind, "text": str(found), **content, "files": _paths(found.pages)}


def _of_reproduction(found: Any) -> dict[str, Any]:
    gaps = [{"text": str(gap), "failed": gap.failed} for gap in found.gaps]
    files = [*found.tables, *found.legacy, *found.pictures]
    return {"kind": "reproduction", "rows": found.rows, "gaps": gaps, "files": _paths(files)}


def _dicts(rows: Iterable[Any]) -> list[dict[str, Any]]:
    return [row.to_dict() for row in rows]


def _paths(files: Iterable[Path]) -> list[str]:
    return [str(path) for path in files]
