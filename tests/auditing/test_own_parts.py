"""A user's own attack and defense, given by file."""

from __future__ import annotations

import sys

import pytest

import medpfl
from medpfl import InputError
from medpfl.attacks import iDLG
from medpfl.inputs.parts import attacks_of, defenses_of
from tests.auditing.audit_cases import some_images
from tests.flat import flat

FILE = '''
from dataclasses import dataclass, replace
from medpfl.attacks import iDLG
from medpfl.core.roles import Attack, Defense

@dataclass(frozen=True, repr=False)
class Mine(Attack):
    """Ours, in fewer steps."""
    steps: int = 2
    def __call__(self, seen, generator):
        return iDLG(steps=self.steps)(seen, generator)

@dataclass(frozen=True, repr=False)
class Halved(Defense):
    """Sends half of it."""
    by: float = 2.0
    def __post_init__(self):
        1 / self.by
    def update(self, value, state, generator):
        return value.replace({k: t / self.by for k, t in value.tensors.items()}), state

class iDLG2(iDLG):
    pass
iDLG2.__name__ = "iDLG"

def no_attack():
    return 3
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "secret-place" / "mine.py"
    path.parent.mkdir()
    path.write_text(FILE)
    yield path
    sys.modules.pop("medpfl_user_mine", None)


def test_they_are_named_without_their_place(file):
    assert [repr(a) for a in attacks_of([f"{file}:Mine", f"{file}:Mine(steps=lin(3, 4, 2))", "DLG"])] == [
        "Mine()", "Mine(steps=3)", "Mine(steps=4)", "DLG()",
    ]  # fmt: skip
    both = defenses_of(f"{file}:Halved(by=4.0) | TopK(keep=0.5)")[1]
    assert repr(both) == "Halved(by=4.0) | TopK(keep=0.5)"


@pytest.mark.slow
def test_an_audit_of_them(file, tmp_path):
    attack, out = f"{file}:Mine", tmp_path / "run"
    options = {"images": 2, "out": out, "progress": False}
    report = flat(
        medpfl.audit, "LeNet('idlg')", some_images(8), attacks=[attack], defenses=[f"{file}:Halved"], **options
    )
    assert {(cell.attack, cell.defense) for cell in report.summary} == {
        ("Mine()", "NoDefense()"), ("Mine()", "Halved()"),
    }  # fmt: skip
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"secret-place" not in written
    file.write_text(FILE.replace("steps=self.steps", "steps=self.steps + 1"))
    with pytest.raises(InputError, match="code"):
        flat(medpfl.audit, "LeNet('idlg')", some_images(8), attacks=[attack], defenses=[f"{file}:Halved"], **options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}:Mien", "has no function or class 'Mien'; did you mean 'Mine'"),
        ("{}:Mine(stpes=3)", "attack 'Mine' has no argument 'stpes'; did you mean 'steps'"),
        ("{}:", r"write its name after the colon, .*mine\.py:Name\(argument=value\)"),
        ("{}x:Mine", "importing"),
        ("nowhere.py:Mine", "there is no attack file 'nowhere.py'"),
        ("no_such_package:Mine", "there is no module 'no_such_package' in this Python: install it"),
        ("no_such_package:Mine", "give your own attack as 'file.py:name' or 'package.module:name'"),
        ("{}:no_attack", "3 cannot be used as attack"),
        ("{}:iDLG", "but MedPFL already has that name: rename it"),
    ],
)
def test_wrong_places_and_names(file, spec, message):
    with pytest.raises(InputError, match=message):
        attacks_of(spec.format(file))


def test_a_constructor_that_breaks(file):
    with pytest.raises(InputError, match=r"defense 'Halved\(by=0.0\)' failed"):
        defenses_of(f"{file}:Halved(by=0.0)")


def test_two_classes_that_are_written_alike(file):
    class Mine(iDLG):
        pass

    assert len(attacks_of([f"{file}:Mine", f"{file}:Mine(steps=2)"])) == 1
    with pytest.raises(InputError, match=r"two different classes have the spec Mine\(\)"):
        attacks_of([Mine(), f"{file}:Mine"])
