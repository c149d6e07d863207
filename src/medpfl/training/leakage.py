"""Leakage over a training: an audit of the model of each of some rounds, on the same images, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medpfl.auditing.report import Report
from medpfl.auditing.run import audit
from medpfl.core.atomic_files import remove_leftovers, write
from medpfl.core.errors import InputError
from medpfl.inputs.checkpoint import Checkpoint, checkpoint_at, is_checkpoint
from medpfl.inputs.parts import attacks_of, defenses_of
from medpfl.reporting.leakage import RoundCell
from medpfl.runs.directory import lines, share
from medpfl.training.report import accuracies_in

__all__ = ["Leakage", "leakage", "rounds_in"]


@dataclass(frozen=True, eq=False)
class Leakage:
    """The audits by round.

    Attributes:
        reports: one for each round, in their order.
        accuracies: balanced accuracy of the model after each round, on the images that the training was judged by (its
            test images, if it has any); ``None`` where it is not known.
        pages: the files written beside those of the single audits.
    """

    reports: dict[int, Report]
    accuracies: dict[int, float | None]
    pages: tuple[Path, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The findings of all rounds, each with its ``round``."""
        return [{"round": n, **row.to_dict()} for n, report in self.reports.items() for row in report.rows]

    @property
    def summary(self) -> list[RoundCell]:
        """The cells of all rounds, each with its round and the model's balanced accuracy."""
        return [RoundCell(n, self.accuracies[n], cell) for n, report in self.reports.items() for cell in report.summary]

    def __str__(self) -> str:
        from medpfl.reporting.leakage import sentence

        return sentence(self.summary)


def leakage(
    model: str | Path, data: Any, rounds: Sequence[int], out: str | Path | None = None, **options: Any
) -> Leakage:
    """Audits the global model of some rounds of a training. With `out`, it continues where it was stopped.

    The audits attack the same images, under the same seeds. Each has a run directory of its own, ``OUT-round-5``
    beside `out`, so that the key to the images lies in none of them; ``OUT/share`` gets the figure over rounds, which
    holds no image, and all rows.

    Args:
        model: the directory of a training.
        data: as in `medpfl.audit`.
        rounds: whose models are audited.
        out: directory of the overview.
        options: of `medpfl.audit`.

    Raises:
        InputError: no training, a round that it has not, or what `medpfl.audit` raises.
    """
    if not is_checkpoint(model):
        raise InputError(f"--rounds needs the directory of a training as --model: '{model}' is none")
    if not rounds:
        raise InputError("no round was given: --rounds 0,1,5")
    # Made once, so that all rounds are audited by the same code.
    made_parts = {"attacks": attacks_of, "defenses": defenses_of}
    options = {name: made_parts[name](value) if name in made_parts else value for name, value in options.items()}
    models = {number: checkpoint_at(Path(model), number) for number in dict.fromkeys(rounds)}
    out = None if out is None else Path(out)
    reports = {n: audit(one, data, out=_beside(out, n), **options) for n, one in models.items()}
    some = next(iter(models.values()))
    found = Leakage(reports, accuracies_in(some.path.parents[1], models))
    return found if out is None else replace(found, pages=_written(out, found, some))


def rounds_in(text: str) -> list[int]:
    """Round numbers from ``"0,1,5"``.

    Raises:
        InputError: anything else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise InputError(f"--rounds is {text!r}: give numbers of rounds, such as 0,1,5")
    return [int(word) for word in words]


def _beside(out: Path | None, number: int) -> Path | None:
    return None if out is None else out.with_name(f"{out.name}-round-{number}")


def _written(out: Path, found: Leakage, model: Checkpoint) -> tuple[Path, ...]:
    from medpfl.reporting.leakage import write_leakage_page

    folder = share(out)
    remove_leftovers(folder)
    write(folder / "leakage.jsonl", lines(found.rows))
    write(folder / "leakage.json", json.dumps([one.to_dict() for one in found.summary], indent=1).encode())
    settings = next(iter(found.reports.values())).settings
    # What is of all rounds in place of what is of the first.
    own = {"model": model.trained, "weights": f"of a training, rounds {', '.join(map(str, found.reports))}"}
    settings = replace(settings, experiment={**settings.experiment, **own})
    return (write_leakage_page(folder, settings.to_dict(), found.summary),)
