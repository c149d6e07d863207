"""The command line: parse, build, call, print."""

from __future__ import annotations

from medpfl.cli.interruption import MESSAGE, STATUS  # first, to catch an interruption of the imports below

# isort: split
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, Namespace

from medpfl.cli.dry_run import foresee_audits, foresee_frontier, foresee_standard, foresee_studies, foresee_training
from medpfl.cli.endings import BAD_INPUT, as_json, ended, hung_up, of_disk, refused
from medpfl.cli.machine import print_json
from medpfl.cli.parser import (
    COMMANDS,
    check_files,
    files_of,
    mapping_of,
    option_of,
    options_of,
    parser_of,
    plain,
    spelled,
    spelled_names,
)
from medpfl.cli.remaking import again, print_reproduction
from medpfl.cli.running import LOADING, check_pdf, finished, planned, working
from medpfl.core.errors import InputError, nearest
from medpfl.core.experiments.evaluation import Evaluating
from medpfl.core.experiments.experiment import Demo, Experiment
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.inspection import Inspection
from medpfl.core.experiments.options import OptionError, Options, options_in
from medpfl.core.experiments.recording import Forgetting, Looking, Recording
from medpfl.core.experiments.training import Training
from medpfl.core.messages import say, speaking
from medpfl.core.progress import phase
from medpfl.core.records.view import RecordView
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, of_frontier
from medpfl.inputs.spelling import check_words
from medpfl.reproduction.experiments import EXPERIMENTS
from medpfl.reproduction.scale import Studies
from medpfl.tradeoff.limits import limits_of

__all__ = ["main"]

T = TypeVar("T", bound=Options)

_DONE, _LEAKS, _INCONCLUSIVE = 0, 3, 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    0: done. 2: bad input, or a wrong record. 3 or 4: under ``--fail-on``, a leak was found or the result is
    inconclusive. 130: interrupted. 141: the reader of the output closed it, as ``head`` does.
    """
    try:
        # On a shared machine, spinning threads slow everything down several times over.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        words = list(sys.argv[1:] if arguments is None else arguments)
        with speaking("--show-paths" in spelled_names(words), words):
            return _main(words)
    except KeyboardInterrupt:
        print(MESSAGE, file=sys.stderr)
        return STATUS


def _main(words: list[str]) -> int:
    given: Namespace | int | None = None
    try:
        given = _parsed(words)
        status = given if isinstance(given, int) else _run(given, words)
        sys.stdout.flush()  # here, where a closed pipe is handled
        return status
    except InputError as error:
        return refused(f"{error}", as_json(given, words))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return hung_up()
        return refused(of_disk(error), as_json(given, words))
    except SystemExit as end:
        return ended(end)


def _parsed(words: list[str]) -> Namespace | int:
    """Return the options, or the exit status if there is nothing else to do, as after ``--help``.

    Raises:
        InputError: the words cannot be parsed.
    """
    if any("\0" in word for word in words):
        raise InputError("an option contains a null byte: no path or spec may contain one")
    parser = parser_of()
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise InputError(f"there is no command '{words[0]}'; {nearest(words[0], COMMANDS)}")
    check_files(words)
    try:
        given = parser.parse_args(spelled(words))
    except SystemExit as end:  # after --help, --version and --print-config
        return int(end.code or _DONE)
    except ArgumentError as error:
        if (
            words[0] == "audit"
            and sum(word.endswith(".safetensors") for word in words) > 1
            and "extra" in plain(str(error))
        ):
            raise InputError(
                "several records were given: put their pattern in quotes, so that the shell keeps it"
            ) from None
        where = _in_file(words)
        known, command = (options_of(parser, words[0]), f" {words[0]}") if words[0] in COMMANDS else ((), "")
        raise InputError(f"{where}{plain(str(error), known)}; 'medpfl{command} --help' lists the options") from None
    if given.subcommand is None:
        parser.print_help()
        return BAD_INPUT
    return given


def _run(given: Namespace, words: list[str]) -> int:
    if given[given.subcommand].get("pdf"):
        check_pdf(given[given.subcommand])  # before any work
    commands = {
        "audit": _audit,
        "check-model": _check_model,
        "compare": _compare,
        "demo": _demo,
        "evaluate": _evaluate,
        "forget": _forget,
        "frontier": _frontier,
        "inspect": _inspect,
        "list": _list,
        "record": _record,
        "report": _report,
        "reproduce": _reproduce,
        "train": _train,
    }
    return commands[given.subcommand](given[given.subcommand], words)


def _in_file(words: list[str]) -> str:
    """Return the name of the invalid YAML file as the start of a message; ``""`` if none is invalid."""
    for path in files_of(words):
        try:
            parser_of().parse_args([words[0], "--config", path])
        except ArgumentError:
            return f"in '{path}': "
    return ""


def _audit(given: Namespace, words: list[str]) -> int:
    return _perform(_spelled_right(Experiment, given, words), given)


def _evaluate(given: Namespace, words: list[str]) -> int:
    asked = _spelled_right(Evaluating, given, words)
    if given.dry_run:
        return planned(given, partial(foresee_standard, asked), asked)
    with working(asked, given.quiet):
        with phase(LOADING):
            from medpfl.evaluation.run import perform_evaluation
            from medpfl.reporting.terminal import print_evaluation

        found = perform_evaluation(asked)
    return finished(found, given, print_evaluation)


def _train(given: Namespace, words: list[str]) -> int:
    training = _spelled_right(Training, given, words)
    if given.dry_run:
        return planned(given, partial(foresee_training, training), training)
    with working(training, given.quiet):
        with phase(LOADING):
            from medpfl.reporting.terminal import print_training
            from medpfl.training.train import perform_training

        found = perform_training(training)
    return finished(found, given, print_training)


def _frontier(given: Namespace, words: list[str]) -> int:
    experiment = _spelled_right(Frontier, given, words)
    _ = experiment.out, limits_of(experiment.limit)
    if given.dry_run:
        return planned(given, partial(foresee_frontier, experiment), experiment)
    with working(experiment, given.quiet):
        with phase(LOADING):
            from medpfl.reporting.terminal import print_frontier
            from medpfl.tradeoff.run import perform_frontier

        found = perform_frontier(experiment)
    verdicts = of_frontier(found.points, found.recommendation) if given.fail_on else {}
    return finished(found, given, print_frontier, _failed_on(given.fail_on, verdicts))


def _typed(kind: type[T], given: Namespace, words: list[str]) -> T:
    """Return the options as a typed experiment; errors name the option as on the command line."""
    asked = given.as_dict()
    known = {name: name.rstrip("_") for name in options_in(kind)}
    options = {name: asked[said] for name, said in known.items() if said in asked}
    if "progress" in known:
        options["progress"] = not given.quiet
    try:
        return kind.of(**options)
    except OptionError as error:
        option = option_of(error.name)
        typed = any(word.partition("=")[0] == option for word in spelled(words))
        files = [] if typed else files_of(words)
        where = f"in {' or '.join(map(repr, files))}: " if files else ""
        raise InputError(f"{where}{option} is {error.problem}") from None


def _spelled_right(kind: type[T], given: Namespace, words: list[str]) -> T:
    """Return the typed experiment after checking that its parts, grants and paths exist."""
    made = _typed(kind, given, words)
    named = signature(check_words).parameters
    check_words(**{name: value for name, value in made.options().items() if name in named})
    return made


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
    return finished(found, given, show, _failed_on(given.get("fail_on"), verdicts))


def _compare(given: Namespace, words: list[str]) -> int:
    with working(f"comparison of {len(given.runs)} audits", given.quiet):
        with phase(LOADING):
            from medpfl.auditing.report import compare
            from medpfl.reporting.terminal import print_comparison

        found = compare(given.runs)
        if given.page:
            found = replace(found, pages=(found.write_page(given.page),))
        written = [*found.pages, *([found.write_csv(given.csv)] if given.csv else [])]
    status = finished(found, given, print_comparison)
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
    return _DONE


def _demo(given: Namespace, words: list[str]) -> int:
    asked = _typed(Demo, given, words)
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


def _check_model(given: Namespace, words: list[str]) -> int:
    asked = _spelled_right(Inspection, given, words)
    shape = _shape(asked.image_shape) if asked.image_shape else (asked.channels, asked.size, asked.size)
    with working(asked):
        with phase(LOADING):
            from medpfl.inspection.check import check_model
            from medpfl.reporting.model_page import model_page, write_model_page

        options = {"weights": asked.weights, "mode": asked.mode, "seed": asked.seed}
        check = check_model(asked.model, shape, asked.classes, **options).to_dict()
    if asked.page:
        write_model_page(Path(asked.page), check)
        say(f"wrote {asked.page}")
    if asked.json:
        print_json(check)
        return _DONE
    _print_page(model_page(check))
    return _DONE


def _print_page(page: Sequence[tuple[str, list[str]]]) -> None:
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False, markup=False)
    for heading, lines in page:
        console.print(heading, style="bold")
        for line in lines:
            console.print(Padding(line, (0, 0, 0, 2)))


def _record(given: Namespace, words: list[str]) -> int:
    asked = _typed(Recording, given, words)
    with working(asked, given.quiet):
        with phase(LOADING):
            from medpfl.recording.states import perform_recording

        made = perform_recording(asked)
    if given.json:
        files = [str(path) for path in made.written if path is not None]
        status = BAD_INPUT if made.view.verdict == "wrong" else _DONE
        print_json({"kind": "record", **made.view.to_dict(), "files": files, "status": status})
        return status
    if not given.quiet:
        say(f"wrote {made.written.record}", sys.stdout)
        if made.written.truth is not None:
            say(f"wrote {made.written.truth}: private images, for this site only, until {made.expires}", sys.stdout)
    return _shown(made.view, given.quiet)


def _inspect(given: Namespace, words: list[str]) -> int:
    asked = _typed(Looking, given, words)
    with working(asked):
        with phase(LOADING):
            from medpfl.recording.states import perform_looking

        made = perform_looking(asked)
    if asked.page:
        from medpfl.reporting.record_page import write_page

        write_page(Path(asked.page), made)
        say(f"wrote {asked.page}")
    if asked.json:
        print_json(made.to_dict())
        return BAD_INPUT if made.verdict == "wrong" else _DONE
    return _shown(made)


def _shown(made: RecordView, quiet: bool = False) -> int:
    """Print the view of a record, and return the exit status."""
    from medpfl.reporting.record_page import record_page

    if not quiet:
        _print_page(record_page(made))
    return BAD_INPUT if made.verdict == "wrong" else _DONE


def _forget(given: Namespace, words: list[str]) -> int:
    asked = _typed(Forgetting, given, words)
    with working(asked):
        with phase(LOADING):
            from medpfl.inputs.spelling import path_of
            from medpfl.recording.folder import forget

        found = forget(path_of(asked.folder))
    if given.json:
        print_json({"kind": "forget", "deleted": found.deleted, "remaining": len(found.remaining), "status": _DONE})
        return _DONE
    files = "1 truth file" if found.deleted == 1 else f"{found.deleted} truth files"
    print(f"deleted {files}. Backups and snapshots of the disk may still hold them.")
    for path in found.remaining:
        say(f"remains: {path}", sys.stdout)
    return _DONE


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.strip("()[] ").replace("x", ",").split(","))
    except ValueError:
        raise InputError(f"--image-shape is {text}: give channels and side lengths, such as 1,64,64") from None


def _report(given: Namespace, words: list[str]) -> int:
    with working(f"summary and pages of {given.out}, again from its rows", given.quiet):
        with phase(LOADING):
            from medpfl.runs.directory import known_in

            make, show = again(str(known_in(Path(given.out)).get("kind")))
        with phase("reading the rows, and writing the pages"):
            found = make(Path(given.out))
    return finished(found, given, show, _failed_part(found))


def _reproduce(given: Namespace, words: list[str]) -> int:
    asked = _typed(Studies, given, words)
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
    return finished(found, given, print_reproduction, _failed_part(found))


def _failed_part(found: Any) -> int:
    """Return the exit status of a result, which shows whether a part of a reproduction failed."""
    return BAD_INPUT if any(gap.failed for gap in getattr(found, "gaps", ())) else _DONE


def _list(given: Namespace, words: list[str]) -> int:
    from medpfl.cli.catalog import catalog, check_role, show

    check_role(given.what)
    with working(f"list of {given.what or 'all parts'}", given.json), phase(LOADING):
        found = catalog(given.what)
    if given.json:
        print_json(found.to_dict())
    else:
        show(found)
    return _DONE
