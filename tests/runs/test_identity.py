"""A run depends only on its identity, which covers the user's parts and every module of the user's that they import."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

import medpfl
from medpfl import InputError, Run, Victims
from medpfl.auditing.report import reread
from medpfl.core.user_code.loading import find
from medpfl.core.user_code.modules import UNKNOWN, own_modules
from medpfl.core.user_code.sources import modules_of
from tests.auditing.audit_cases import Answers, some_images
from tests.flat import flat

pytestmark = pytest.mark.usefixtures("no_pages_else")

MINE = """
from dataclasses import dataclass
from medpfl.attacks import iDLG
from medpfl.core.roles import Attack, Defense
from lab_helper import steps

@dataclass(frozen=True, repr=False)
class Mine(Attack):
    def __call__(self, seen, generator):
        {lazily}
        return iDLG(steps=steps())(seen, generator)

@dataclass(frozen=True, repr=False)
class Sent(Defense):
    def update(self, value, state, generator):
        return value, state
"""
HELPER = "from lab_numbers import STEPS\ndef steps():\n    return STEPS\n"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Create a folder with an attack, a helper that it imports, and one that the helper imports."""
    place = tmp_path / "lab"
    place.mkdir()
    (place / "mine.py").write_text(MINE.format(lazily=""))
    (place / "lab_helper.py").write_text(HELPER)
    (place / "lab_numbers.py").write_text("STEPS = 2\n")
    monkeypatch.syspath_prepend(str(place))
    before = set(sys.modules)
    yield place
    for name in set(sys.modules) - before:
        if name.startswith(("lab_", "medpfl_user_")):
            del sys.modules[name]


def tiny(lab, out, **options):
    parts = {"attacks": [f"{lab}/mine.py:Mine"], **options}
    return flat(medpfl.audit, "MLP((4,))", some_images(8), **parts, victims=Victims(images=2), run=Run(out=out))


def new_process(lab):
    """Simulate a new process, which has not imported the user's modules yet."""
    for name in [name for name in sys.modules if name.startswith(("lab_", "medpfl_user_"))]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.slow
def test_an_edited_module_deep_below_an_attack_refuses_its_rows(lab, tmp_path, pages):
    out = tmp_path / "runs" / "a"
    tiny(lab, out)
    assert len(json.loads((out / "run.json").read_text())["identity"]["sources"]) == 3
    assert b"lab_" not in b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file()), "nor any name"
    rows = (out / "share/findings.jsonl").read_bytes()
    new_process(lab)
    tiny(lab, out, isolate=False)
    assert (out / "share/findings.jsonl").read_bytes() == rows, "the same code continues"
    (lab / "lab_numbers.py").write_text("STEPS = 3\n")
    new_process(lab)
    with pytest.raises(InputError, match=r"the code of Mine changed \(module lab_numbers\).*--force"):
        tiny(lab, out)  # in a process of its own again
    assert (out / "share/findings.jsonl").read_bytes() == rows


@pytest.mark.slow
def test_a_run_begun_anew_with_edited_code_continues(lab, tmp_path):
    out = tmp_path / "runs" / "a"
    tiny(lab, out, isolate=False)
    (lab / "lab_numbers.py").write_text("STEPS = 3\n")
    new_process(lab)
    with pytest.raises(InputError, match=r"the code of Mine changed \(module lab_numbers\).*--force"):
        tiny(lab, out, isolate=False)
    tiny(lab, out, isolate=False, force=True)
    rows = (out / "share/findings.jsonl").read_bytes()
    tiny(lab, out, isolate=False)
    assert (out / "share/findings.jsonl").read_bytes() == rows


@pytest.mark.slow
def test_a_module_that_this_process_imported_before_it_was_edited_is_never_run(lab, tmp_path):
    tiny(lab, None, isolate=False)
    (lab / "lab_numbers.py").write_text("STEPS = 3\n")
    for force in (False, True):
        with pytest.raises(InputError, match=r"lab_numbers changed after it had been imported.*restart Python"):
            tiny(lab, tmp_path / "runs" / "a", force=force, isolate=False)
    tiny(lab, tmp_path / "runs" / "a")  # a process of its own begins with the file as it is


@pytest.mark.slow
def test_a_source_that_changes_while_a_run_goes_on_refuses_its_rows_for_good(lab, tmp_path):
    out = tmp_path / "runs" / "a"
    numbers = str(lab / "lab_numbers.py")
    edits = f"from pathlib import Path; Path({numbers!r}).write_text('STEPS = 4')"
    (lab / "mine.py").write_text(MINE.format(lazily=edits))
    with pytest.raises(
        InputError, match=r"lab_numbers changed .*the run's rows mix two versions of the code and are refused"
    ):
        tiny(lab, out)
    assert (out / "share/findings.jsonl").read_bytes()
    (lab / "mine.py").write_text(MINE.format(lazily=""))
    new_process(lab)
    for refused in (lambda: tiny(lab, out, isolate=False), lambda: reread(out)):
        with pytest.raises(InputError, match=r"the rows in .* are refused because the code of a part changed"):
            refused()
    tiny(lab, out, isolate=False, force=True)
    assert reread(out).rows


@pytest.mark.slow
def test_a_module_that_is_imported_inside_a_function_is_hashed_before_it_is_imported(lab, tmp_path):
    (lab / "mine.py").write_text(MINE.format(lazily="import lab_lazy"))
    (lab / "lab_lazy.py").write_text("X = 1\n")
    tiny(lab, tmp_path / "runs" / "a", isolate=False)
    (lab / "lab_lazy.py").write_text("X = 2\n")
    new_process(lab)
    with pytest.raises(InputError, match=r"module lab_lazy"):
        tiny(lab, tmp_path / "runs" / "a", isolate=False)


@pytest.mark.slow
def test_a_module_that_is_imported_by_a_text_meanwhile_refuses_the_rows(lab, tmp_path):
    (lab / "mine.py").write_text(MINE.format(lazily="import importlib; importlib.import_module('lab_' + 'text')"))
    (lab / "lab_text.py").write_text("X = 1\n")
    with pytest.raises(InputError, match=r"the module lab_text was imported during the run.*refused"):
        tiny(lab, tmp_path / "runs" / "a")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["defense", "model", "source", "partition", "prior", "composed"])
def test_the_code_of_every_part_counts(part, lab, tmp_path):
    (lab / "lab_parts.py").write_text(
        textwrap.dedent("""
        from dataclasses import dataclass, field
        import torch
        from torch import nn
        from lab_numbers import STEPS
        from medpfl.attacks.matching.priors import NoPrior
        from medpfl.core.roles import DataSource
        from medpfl.data.partition import IID
        from medpfl.data.images import LabelledImages

        class Prior(NoPrior):
            pass

        class Dealt(IID):
            pass

        def make():
            return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))

        @dataclass(frozen=True, repr=False)
        class Source(DataSource):
            def load(self):
                images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
                names = tuple(map(str, range(8)))
                return LabelledImages(images, torch.arange(8) % 2, ("a", "b"), names, (None,) * 8)
    """)
    )

    def options():
        import lab_parts

        from medpfl.attacks import GradientMatching
        from medpfl.data.images import LabelledImages

        both = f"{lab}/mine.py:Sent"
        own = {
            "defense": {"defenses": [both]},
            "composed": {"defenses": [f"{both} | TopK(keep=0.5)"]},
            "model": {"model": f"{lab}/lab_parts.py:make"},
            "source": {"data": lab_parts.Source()},
            "partition": {"partition": lab_parts.Dealt(clients=1)},
            "prior": {"attacks": [GradientMatching(prior=lab_parts.Prior(), steps=2)]},
        }[part]
        data: LabelledImages = some_images(8)
        return {"model": "MLP((4,))", "data": data, "attacks": ["iDLG(steps=2)"], "images": 2, **own}

    out = tmp_path / "runs" / "a"
    flat(medpfl.audit, **options(), run=Run(out=out))
    flat(medpfl.audit, **options(), run=Run(out=out))
    (lab / "lab_numbers.py").write_text("STEPS = 2  # edited\n")
    new_process(lab)
    with pytest.raises(InputError, match=r"the code of .* changed \(module lab_numbers\)"):
        flat(medpfl.audit, **options(), run=Run(out=out))


@pytest.mark.slow
def test_a_training_and_a_frontier_refuse_changed_code(lab, tmp_path):
    from medpfl.core.experiments.frontier import Frontier
    from medpfl.tradeoff.run import perform_frontier

    defense = f"{lab}/mine.py:Sent"
    train = {"rounds": 1, "clients": 2, "defense": defense, "out": tmp_path / "runs" / "t"}
    experiment = Frontier.of(
        data="samples", model="MLP((4,))", attack=[f"{lab}/mine.py:Mine"], defense=[defense, "TopK(keep=0.5)"],
        rounds=1, clients=2, images=2, size=16, seeds=1, holdout=3, isolate=False,
    )  # fmt: skip
    flat(medpfl.train, "MLP((4,))", some_images(12), **train)
    perform_frontier(experiment.having(out=tmp_path / "runs" / "f"))
    new_process(lab)
    # Another file of this name, imported first, as another part's would be.
    (tmp_path / "mine.py").write_text("def other(): ...\n")
    find(str(tmp_path / "mine.py"), "other", "attack")
    perform_frontier(experiment.having(out=tmp_path / "runs" / "f"))
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        ".medpfl-key.json.lock",
        "f",
        "medpfl-key.json",
        "t",
    ]
    assert not list((tmp_path / "runs" / "f").rglob("medpfl-key.json")), "the key is beside, for all runs in it"
    (lab / "lab_helper.py").write_text(HELPER + "# edited\n")
    new_process(lab)
    with pytest.raises(InputError, match=r"the code of Sent changed \(module lab_helper\)"):
        flat(medpfl.train, "MLP((4,))", some_images(12), **train)
    with pytest.raises(InputError, match=r"the code of (Mine|Sent) changed \(module lab_helper\)"):
        perform_frontier(experiment.having(out=tmp_path / "runs" / "f"))


def test_code_in_a_zip_file_and_in_a_package_without_init_is_hashed(lab, monkeypatch):
    with zipfile.ZipFile(lab / "packed.zip", "w") as archive:
        archive.writestr("lab_zipped.py", "X = 1\n")
    (lab / "lab_space").mkdir()
    (lab / "lab_space" / "inner.py").write_text("Y = 1\n")
    monkeypatch.syspath_prepend(str(lab / "packed.zip"))
    (lab / "both.py").write_text("import lab_zipped\nfrom lab_space import inner\ndef made():\n    return inner.Y\n")
    found = modules_of(find(str(lab / "both.py"), "made", "model"))
    assert set(found) == {"medpfl_user_both", "lab_zipped", "lab_space", "lab_space.inner"}


def test_only_what_no_distribution_installed_is_the_users_own(lab):
    (lab / "uses.py").write_text("import json, numpy, torch.nn, medpfl\ndef made():\n    return numpy\n")
    assert set(modules_of(find(str(lab / "uses.py"), "made", "model"))) == {"medpfl_user_uses"}
    own = own_modules()
    assert __name__ in own
    assert not [name for name in own if name.startswith(("torch", "numpy", "medpfl.", "json"))]


INTERACTIVE = """
import os, sys, torch._dynamo, medpfl, medpfl.auditing.run, medpfl.reporting
sys.path.insert(0, {tests!r})
from tests.auditing.audit_cases import some_images
medpfl.reporting.write_pages = lambda *_: []
code = '''
from dataclasses import dataclass
from medpfl.attacks import iDLG
from medpfl.core.roles import Attack
STEPS = %d
held = %s
@dataclass(frozen=True, repr=False)
class Typed(Attack):
    def __call__(self, seen, generator):
        held
        return iDLG(steps=STEPS)(seen, generator)
'''
own = {{"victims": medpfl.Victims(images=2), "run": medpfl.Run(out=sys.argv[1])}}
for cell in {cells!r}:
    if os.fork() == 0:  # a process of its own for each; only the imports of libraries are shared
        exec(compile(code % cell, "<cell>", "exec"), globals())
        try:
            medpfl.audit("MLP((4,))", some_images(8), attacks=[Typed()], **own)
            print("done")
        except medpfl.InputError as error:
            print(error)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
def test_code_that_was_typed_in_is_compared_by_what_it_uses(tmp_path):
    out = tmp_path / "runs" / "a"
    out.parent.mkdir()
    cells = [(2, "None"), (2, "None"), (3, "None"), (2, "object()")]
    code = INTERACTIVE.format(tests=str(Path(__file__).parents[2]), cells=cells)
    done = subprocess.run([sys.executable, "-c", code, out], capture_output=True, text=True, timeout=300, check=True)
    first, again, other, unknown = done.stdout.splitlines()
    assert (first, again) == ("done", "done"), "the same cells in another process continue"
    assert "the code of Typed changed" in other
    assert "the code of Typed cannot be compared" in unknown


def test_a_digest_of_what_cannot_be_known_says_why():
    made = object()

    def local():
        return made

    local.__module__ = "no_such_module"
    (digest,) = (digest for name, digest in modules_of(local).items() if name.startswith("no_such_module"))
    assert digest.startswith(UNKNOWN)
    assert "object" in digest
    assert modules_of(Answers()).keys() == {"tests", "tests.auditing.audit_cases", "tests.flat"}
