"""Commands that run, repeat, compare or list experiments: build the experiment, call, print."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from medpfl.cli.asked import experiment_from, spelled_right
from medpfl.cli.config_files import mapping_of
from medpfl.cli.dry_run import foresee_audits, foresee_frontier, foresee_standard, foresee_studies, foresee_training
from medpfl.cli.endings import BAD_INPUT, DONE
from medpfl.cli.machine import print_json
from medpfl.cli.remaking import again, print_reproduction
from medpfl.cli.running import LOADING, planned, result_printed, working
from medpfl.core.experiments.evaluation import Evaluating
from medpfl.core.experiments.experiment import Demo, Experiment
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.training import Training
from medpfl.core.messages import counted, say
from medpfl.core.progress import phase
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, of_frontier
from medpfl.reproduction.experiments import EXPERIMENTS
from medpfl.reproduction.scale import Studies
from medpfl.tradeoff.limits import limits_of

__all__ = ["DEMO", "RUN"]

_LEAKS, _INCONCLUSIVE = 3, 4


def _audit(given: Namespace, words: list[str]) -> int:
    return _perform(spelled_right(Experiment, given, words), given)


def _evaluate(given: Namespace, words: list[str]) -> int:
    asked = spelled_right(Evaluating, given, words)
    if given.dry_run:
        return planned(given, partial(foresee_standard, asked), asked)
    with working(asked, given.quiet):
        with phase(LOADING):
            from medpfl.evaluation.run import perform_evaluation
            from medpfl.reporting.terminal import print_evaluation

        found = perform_evaluation(asked)
    return result_printed(found, given, print_evaluation)


def _train(given: Namespace, words: list[str]) -> int:
    training = spelled_right(Training, given, words)
    if given.dry_run:
        return planned(given, partial(foresee_training, training), training)
    with working(training, given.quiet):
        with phase(LOADING):
            from medpfl.reporting.terminal import print_training
            from medpfl.training.train import perform_training

        found = perform_training(training)
    return result_printed(found, given, print_training)


def _frontier(given: Namespace, words: list[str]) -> int:
    experiment = spelled_right(Frontier, given, words)
    _ = experiment.out, limits_of(experiment.limit)
    if given.dry_run:
        return planned(given, partial(foresee_frontier, experiment), experiment)
    with working(experiment, given.quiet):
        with phase(LOADING):
            from medpfl.reporting.terminal import print_frontier
            from medpfl.tradeoff.run import perform_frontier

        found = perform_frontier(experiment)
    verdicts = of_frontier(found.points, found.recommendation) if given.fail_on else {}
    return result_printed(found, given, print_frontier, _failed_on(given.fail_on, verdicts))


def _perform(experiment: Experiment, given: Namespace) -> int:
    if given.dry_run:
        return planned(given, partial(foresee_audits, experiment), experiment)
    with working(experiment, given.quiet):
        with phase(LOADING):
            from medpfl.auditing.run import perform
            from medpfl.federation.folders import is_federation
            from medpfl.judging.summary import by_defense
            from medpfl.reporting.terminal import print_audit, print_federation, print_leakage, print_realism

        if is_federation(experiment.data):
            from medpfl.federation.run import perform_federation

            found, show = perform_federation(experiment), print_federation
            verdicts = found.verdicts()
        elif experiment.realism:
            from medpfl.assumptions.run import perform_realism

            found, show = perform_realism(experiment), print_realism
            verdicts = found.verdicts()
        elif experiment.rounds is None:
            found, show = perform(experiment), print_audit
            verdicts = by_defense(found.summary)
        else:
            from medpfl.training.leakage import perform_leakage

            found, show = perform_leakage(experiment), print_leakage
            verdicts = {
                f"{defense} in round {number}": verdict
                for number, report in found.reports.items()
                for defense, verdict in by_defense(report.summary).items()
            }
    return result_printed(found, given, show, _failed_on(given.get("fail_on"), verdicts))


def _compare(given: Namespace, words: list[str]) -> int:
    with working(f"comparison of {counted(len(given.runs), 'audit')}", given.quiet):
        with phase(LOADING):
            from medpfl.auditing.report import compare
            from medpfl.reporting.terminal import print_comparison

        found = compare(given.runs)
        if given.page:
            found = replace(found, pages=(found.write_page(given.page),))
        written = [*found.pages, *([found.write_csv(given.csv)] if given.csv else [])]
    status = result_printed(found, given, print_comparison)
    for path in written:
        say(f"wrote {path}", sys.stderr if given.json else sys.stdout)
    return status


def _failed_on(asked: str | None, verdicts: Mapping[str, str]) -> int:
    """Return the exit status under ``--fail-on``, and print the reason on standard error unless it is 0."""
    words = {LEAKS: _LEAKS, INCONCLUSIVE: _INCONCLUSIVE} if asked == "inconclusive" else {LEAKS: _LEAKS}
    for verdict, status in words.items() if asked else ():
        if where := [name for name, found in verdicts.items() if found == verdict]:
            print(f"medpfl: exit status {status} by --fail-on {asked}: {verdict}: {', '.join(where)}", file=sys.stderr)
            return status
    return DONE


def _demo(given: Namespace, words: list[str]) -> int:
    asked = experiment_from(Demo, given, words)
    demo = replace(DEMO, run=asked.run)
    status = _perform(demo if asked.images is None else demo.having(images=asked.images), given)
    if not (given.dry_run or given.quiet or given.json):
        print("To test your own: medpfl audit path/to/images --model path/to/model.py:make_model --out runs/mine")
    return status


DEMO = Experiment.of(
    model="LeNet('idlg')",
    attack=["iDLG"],
    defense=["LaplaceNoise(scale=0.01)"],
    images=24,
)


def _report(given: Namespace, words: list[str]) -> int:
    with working(f"summary and pages of {given.out}, again from its rows", given.quiet):
        with phase(LOADING):
            from medpfl.runs.directory import known_in

            make, show = again(str(known_in(Path(given.out)).get("kind")))
        with phase("reading the rows, and writing the pages"):
            found = make(Path(given.out))
    return result_printed(found, given, show, _failed_part(found))


def _reproduce(given: Namespace, words: list[str]) -> int:
    asked = experiment_from(Studies, given, words)
    if given.dry_run:
        return planned(given, partial(foresee_studies, asked), asked)
    with working(asked, given.quiet):
        with phase(LOADING):
            from medpfl.reproduction.run import remake, reproduce

        if asked.from_:
            found = remake(asked.from_, asked.published, asked.run.force)
        else:
            found = reproduce(
                asked.experiment or EXPERIMENTS,
                data=asked.data,
                sets=mapping_of(asked.sets) if asked.sets else {},
                published=asked.published,
                parts=asked.part,
                scale=asked.scale,
                run=asked.run,
            )
    return result_printed(found, given, print_reproduction, _failed_part(found))


def _failed_part(found: Any) -> int:
    """Return the exit status of a result, which shows whether a part of a reproduction failed."""
    return BAD_INPUT if any(gap.failed for gap in getattr(found, "gaps", ())) else DONE


def _list(given: Namespace, words: list[str]) -> int:
    from medpfl.cli.catalog import catalog, check_role, show

    check_role(given.what)
    with working(f"list of {given.what or 'all parts'}", given.json), phase(LOADING):
        found = catalog(given.what)
    if given.json:
        print_json(found.to_dict())
    else:
        show(found)
    return DONE


RUN = {
    "audit": _audit,
    "compare": _compare,
    "demo": _demo,
    "evaluate": _evaluate,
    "frontier": _frontier,
    "list": _list,
    "report": _report,
    "reproduce": _reproduce,
    "train": _train,
}
"""The commands' functions, each of the options and the words of the command line; they return the exit status."""
