"""Options are stated once, and appear on the command line, in files, in experiments and in public signatures."""

from __future__ import annotations

import ast
import pickle
from collections import Counter
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path

import pytest
import yaml

import medpfl
from medpfl import Criteria, InputError, Plan, Run, Victims, audit, cli, train
from medpfl.cli import commands, parser
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.frontier import Frontier
from medpfl.core.experiments.options import OptionError, Options, again, group, option, options_in
from medpfl.core.experiments.training import Training
from medpfl.training.leakage import leakage

SOURCE = Path(medpfl.__file__).parent


@pytest.mark.slow
def test_a_new_option_costs_two_edits(monkeypatch, tmp_path, capsys):
    """The first edit states it, here `floor` in `Criteria`; the second uses it. Nothing else has to know it."""

    @dataclass(frozen=True, kw_only=True)
    class Stricter(Criteria):
        floor: float = option(0.5, "share of the images that must be attacked", least=0, most=1)

    @dataclass(frozen=True, kw_only=True)
    class Asked(Experiment):
        criteria: Stricter = group(Stricter())

    used = []
    monkeypatch.setattr(commands, "Experiment", Asked)
    monkeypatch.setattr(parser, "Experiment", Asked)
    monkeypatch.setattr("medpfl.core.experiments.options.get_type_hints", lambda kind: hints(kind, Stricter))
    monkeypatch.setattr(commands, "_perform", lambda asked, given: used.append(asked) or 0)
    file = tmp_path / "asked.yaml"
    file.write_text("floor: 0.25\n")
    assert (
        cli.main(["audit"]) == cli.main(["audit", "--floor", "0.75"]) == cli.main(["audit", "--config", str(file)]) == 0
    )
    assert [asked.criteria.floor for asked in used] == [0.5, 0.75, 0.25]
    assert cli.main(["audit", "--floor", "2"]) == 2
    assert "--floor is 2.0: it must be a number at least 0 and at most 1" in capsys.readouterr().err
    assert cli.main(["audit", "--flor", "1"]) == 2
    assert "did you mean '--floor'?" in capsys.readouterr().err
    assert cli.main(["audit", "--help"]) == 0
    assert "share of the images that must be attacked" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["audit", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["floor"] == 0.5
    # In Python it is an argument of the group; and it tells runs apart, without a word in the audit.
    small = {"attacks": ["iDLG(steps=1)"], "victims": Victims(images=2, size=16), "run": Run(out=tmp_path / "run")}
    audit("LeNet('idlg')", criteria=Stricter(), **small)
    with pytest.raises(InputError, match=r"other floor"):
        audit("LeNet('idlg')", criteria=Stricter(floor=1.0), **small)


def hints(kind, new):
    """Resolve annotations in classes that a test defines, which name objects local to that test."""
    from typing import get_type_hints

    return get_type_hints(kind, localns={"Stricter": new})


@pytest.mark.parametrize("door", [audit, train, leakage], ids=lambda door: door.__name__)
def test_a_door_has_the_defaults_of_its_typed_experiment(door):
    typed = Training if door is train else Experiment
    found = {name: one.default for name, one in signature(door).parameters.items()}
    known = {one.name: one.default for one in fields(typed)}
    shared = {name for name in found if name in known and name not in ("defense", "rounds")}
    assert shared >= {"plan", "run"}
    for name in shared - ({"model", "data"} if door is leakage else set()):
        assert found[name] == known[name], name


@pytest.mark.slow
def test_every_option_has_its_default_and_bounds_in_one_place():
    """A class's field is an option; another class that has it says `again`, with the same bounds and type."""
    stated = Counter()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.value.func if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call) else None
            if isinstance(called, ast.Name) and called.id == "option":
                stated[ast.unparse(node.target)] += 1
    # The same word for something else: images of a set, channels of a model, whose data and model, what is repeated,
    # the folder of records, the round of a federation, the clients behind a recorded mean.
    others = {"images", "weights", "steps", "channels", "data", "model", "defense", "attack", "grant", "rounds"}
    others |= {"out", "round", "clients"}
    assert {name for name, count in stated.items() if count > 1} <= others
    for typed in (Experiment, Training, Frontier):
        for name, entry in options_in(typed).items():
            assert entry.help or name == "progress", "the command line says what it is"


def test_options_are_put_together_and_taken_apart():
    asked = Experiment.of(images=3, seed=4, batch_size=2, model="MLP")
    assert (asked.victims.images, asked.run.seed, asked.plan.batch_size, asked.model) == (3, 4, 2, "MLP")
    assert Experiment.of(**asked.options()) == asked
    assert asked.having(images=5).victims == Victims(images=5)
    assert "progress" not in asked.options(), "it says nothing of the experiment"
    assert asked.having(progress=True).run.progress
    assert Training().plan == Plan("FedAvg", batch_size=32, learning_rate=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images is 0: it must be a whole number, at least 1 and at most"),
        ({"images": True}, "images is True: it must be a whole number"),
        ({"images": 2.0}, "images is 2.0: it must be a whole number"),
        ({"memory": float("inf")}, "memory is inf: it must be a number above 0"),
        ({"memory": "2"}, "memory is '2': it must be a number above 0"),
        ({"tolerance": 1}, "tolerance is 1: it must be a number above 0 and below 1"),
        ({"fit": "fill"}, "fit is 'fill': choose crop or squash"),
        ({"channels": 2}, "channels is 2: choose 1 or 3"),
        ({"force": 1}, "force is 1: it must be True or False"),
        ({"isolate": "no"}, "isolate is 'no': it must be True or False"),
        ({"imagse": 3}, "there is no option 'imagse'; did you mean 'images'?"),
    ],
)
def test_what_is_out_of_its_bounds_is_refused(options, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        Experiment.of(**options)


def test_an_option_without_meaning_for_an_experiment_is_none_of_it():
    assert {"memory", "isolate", "loss"} & set(options_in(Training)) == set()
    with pytest.raises(InputError, match="there is no option 'loss'"):
        Training.of(loss="dice")
    with pytest.raises(InputError, match="memory applies to attacks"):
        train("MLP", run=Run(memory=1.0))


def test_another_default_keeps_bounds_help_and_type():
    @dataclass(frozen=True, kw_only=True)
    class Few(Options):
        images: int | None = again(Victims, "images", 4)

    one, other = options_in(Few)["images"], options_in(Victims)["images"]
    assert one == other._replace(default=4)
    with pytest.raises(OptionError):
        Few(images=0)


def test_the_error_of_an_option_can_be_sent_to_another_process():
    error = pickle.loads(pickle.dumps(OptionError("images", "0: it must be more")))
    assert (str(error), error.name) == ("images is 0: it must be more", "images")
