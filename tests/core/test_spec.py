"""Spec strings: parsed and printed for every part, never evaluated, with helpful errors."""

from __future__ import annotations

import inspect
import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpfl import attacks, data, defenses, models
from medpfl.attacks import matching
from medpfl.core.errors import InputError
from medpfl.core.roles import Composed
from medpfl.core.spec import Part, build, construct, expand, registry, shown, summary

LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


@dataclass(frozen=True, repr=False)
class Inner(Part):
    x: float = 1.0


@dataclass(frozen=True, repr=False)
class Outer(Part):
    first: Any = None
    second: Any = shown(0)
    part: Inner = field(default_factory=Inner)
    hidden: Any = field(default="", repr=False)


KNOWN = {"Inner": Inner, "Outer": Outer}


@pytest.mark.slow
@given(first=LITERALS, second=LITERALS, x=st.floats(allow_nan=False, allow_infinity=False))
def test_any_literal_argument_survives(first, second, x):
    part = Outer(first, second, Inner(x))
    assert build(repr(part), KNOWN, nested=KNOWN) == part


def test_only_what_matters_is_written():
    assert repr(Outer()) == "Outer(second=0)"
    assert repr(Outer(first="a", hidden="/home/x")) == "Outer(first='a', second=0)"
    assert repr(Outer(part=Inner(2.0))) == "Outer(second=0, part=Inner(x=2.0))"
    assert repr(Inner(1)) == "Inner()"


MEMBERS = [
    (role, name)
    for role, package in (("attack", attacks), ("defense", defenses), ("model", models), ("data source", data))
    for name in package.__all__
    # Those that need an argument keep it (a path) out of what is written: the test of data sources looks at them.
    if all(p.default is not p.empty for p in inspect.signature(getattr(package, name)).parameters.values())
]
REGISTRIES = {"attack": attacks, "defense": defenses, "model": models, "data source": data}
CHANGED = [
    ("defense", "LaplaceNoise(scale=0.25, relative='layer')"),
    ("defense", "GaussianNoise(scale=1e-05, relative='norm')"),
    ("model", "LeNet(variant='cpl', classes=7, channels=3)"),
    ("model", "ResNet(depth=50)"),
    ("data source", "Samples(size=64)"),
    ("attack", "GradientMatching(objective=Cosine(), prior=TotalVariation(), labels=Joint(), restarts=4)"),
]


@pytest.mark.parametrize(("role", "name"), MEMBERS)
def test_every_member_both_ways(role, name):
    known, nested = registry(REGISTRIES[role]), registry(matching)
    part = build(name, known, role)
    assert type(part) is known[name]
    assert part == known[name]() == build(f" {name}() ", known, role)
    assert build(repr(part), known, role, nested) == part
    assert hash(part) == hash(known[name]())


@pytest.mark.parametrize(("role", "text"), CHANGED)
def test_members_with_arguments_both_ways(role, text):
    known, nested = registry(REGISTRIES[role]), registry(matching)
    part = build(text, known, role, nested)
    assert build(repr(part), known, role, nested) == part
    assert part != known[text.partition("(")[0]]()


def test_nested_parts_and_positions():
    attack = build("GradientMatching(Cosine, steps=3)", registry(attacks), "attack", registry(matching))
    assert attack == attacks.GradientMatching(matching.Cosine(), steps=3)
    with pytest.raises(InputError, match="no part of attack GradientMatching 'Cosin'; did you mean 'Cosine'"):
        build("GradientMatching(objective=Cosin())", registry(attacks), "attack", registry(matching))
    with pytest.raises(InputError, match="not a literal"):
        build("Outer(part=Inner())", KNOWN)


def test_ratios_as_papers_write_them():
    from medpfl.defenses.laplace import PAPER_SCALES

    texts = [f"LaplaceNoise(scale=1/{d})" for d in (400, 300, 200, 100)]
    built = [build(text, registry(defenses)) for text in texts]
    assert built == [defenses.LaplaceNoise(scale) for scale in PAPER_SCALES]
    assert build(repr(built[1]), registry(defenses)) == built[1]


def test_composition():
    known = registry(defenses)
    three = build("LaplaceNoise(scale=0.5) | NoDefense | GaussianNoise(0.25)", known, "defense")
    parts = (defenses.LaplaceNoise(0.5), defenses.NoDefense(), defenses.GaussianNoise(0.25))
    assert three == Composed(parts)
    assert build(repr(three), known, "defense") == three
    assert build("(NoDefense | LaplaceNoise) | (NoDefense | NoDefense)", known).parts == (
        defenses.NoDefense(),
        defenses.LaplaceNoise(),
        defenses.NoDefense(),
        defenses.NoDefense(),
    )
    with pytest.raises(InputError, match=r"'DLG \| CPL': attack specs cannot be joined"):
        build("DLG | CPL", registry(attacks), "attack")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LaplaceNose(scale=1)", "no defense 'LaplaceNose'; did you mean 'LaplaceNoise'"),
        ("none", "no defense 'none'; did you mean 'NoDefense'"),
        ("None", "no defense 'None'; did you mean 'NoDefense'"),
        ("LaplaceNoise | Nodefense", "no defense 'Nodefense'; did you mean 'NoDefense'"),
        ("LaplaceNoise(scal=1)", "defense 'LaplaceNoise' has no argument 'scal'; did you mean 'scale'"),
        ("NoDefense(scale=1)", "defense 'NoDefense' has no argument 'scale'; it takes none"),
        ("LaplaceNoise(1, 'norm', 3)", "defense 'LaplaceNoise': too many positional arguments"),
        ("LaplaceNoise(1, scale=2)", "defense 'LaplaceNoise': multiple values for argument 'scale'"),
        ("LaplaceNoise(scale=-1)", "defense 'LaplaceNoise': scale is -1"),
        ("LaplaceNoise(scale='wide')", "defense 'LaplaceNoise': scale is 'wide': it must be a number, such as 0.01"),
        ("LaplaceNoise(scale=wide)", "'wide' is not a literal"),
        ("LaplaceNoise(scale=1/0)", "'1 / 0' is not a literal"),
        ("LaplaceNoise(scale=1/wide)", "'1 / wide' is not a literal"),
        ("LaplaceNoise(scale=1/'2')", "is not a literal"),
        ("LaplaceNoise(scale={[1]: 2})", "is not a literal"),
        ("LaplaceNoise(**{'scale': 1})", r"no argument '\*\*'"),
        ("LaplaceNoise(*[1])", "is not a literal"),
        ("LaplaceNoise(", "is not a spec: write Name or Name"),
        ("", "is not a spec"),
        ("LaplaceNoise LaplaceNoise", "is not a spec"),
        ("'LaplaceNoise'", "is not a spec"),
        ("LaplaceNoise & NoDefense", "is not a spec"),
        ("noise.LaplaceNoise()", "is not a spec"),
        ("LaplaceNoise()()", "is not a spec"),
        ("x = 1", "is not a spec"),
    ],
)
def test_errors_say_what_is_wrong_and_what_was_meant(text, message):
    with pytest.raises(InputError, match=message):
        build(text, registry(defenses), "defense")


EVIL = [
    "__import__('pathlib').Path(MARK).touch()",
    "().__class__.__base__.__subclasses__()",
    "open(MARK, 'w')",
    "(lambda: open(MARK, 'w'))()",
    "[open(MARK, 'w') for _ in (1,)]",
    "f\"{open(MARK, 'w')}\"",
    "(x := open(MARK, 'w'))",
    "exec(\"open(MARK, 'w')\")",
    "9**9**9",
    "'a' * 10**10",
]


@pytest.mark.parametrize("code", EVIL)
@pytest.mark.parametrize(
    "place", ["{}", "LaplaceNoise(scale={})", "LaplaceNoise({})", "LaplaceNoise() | {}", "LaplaceNoise(scale=[{}])"]
)
def test_code_is_never_run(tmp_path, code, place):
    mark = tmp_path / "mark"
    text = place.format(code.replace("MARK", repr(str(mark))))
    for nested in (None, registry(matching)):
        with pytest.raises(InputError):
            build(text, registry(defenses), "defense", nested)
    assert not mark.exists()


@given(st.text(alphabet="AB()|,='1[]{}:.*-\"\\ \n#", max_size=20))
def test_whatever_is_typed_gives_a_part_or_an_input_error(text):
    try:
        made = build(text, {"A": Inner, "B": Outer}, nested={"A": Inner})
    except InputError:
        return
    assert isinstance(made, Part)


def test_functions_with_free_keywords():
    assert construct(lambda **free: free, "f", [], {"a": 1}, "model") == {"a": 1}
    with pytest.raises(InputError, match="model 'f': inner"):
        construct(_failing, "f", [], {}, "model")


def _failing():
    raise InputError("inner")


def test_sweeps():
    assert expand("A") == ["A"]
    assert expand("A(x=lin(1, 3, 3))") == ["A(x=1)", "A(x=2)", "A(x=3)"]
    assert expand("A(x=lin(5, 9, 1))") == ["A(x=5)"]
    assert expand("A(x=lin(65537, 1e-6, 2))") == ["A(x=65537)", "A(x=1e-06)"]
    assert expand("A(x=geom( 1e-4 ,1e-2, 3))|B") == ["A(x=0.0001)|B", "A(x=0.001)|B", "A(x=0.01)|B"]
    assert expand("A(x=lin(0, 1, 2), y='z') | B(x=geom(1, 4, 2))") == [
        f"A(x={a}, y='z') | B(x={b})" for a, b in itertools.product((0, 1), (1, 4))
    ]
    assert expand("A(spline(1, 2, 3))") == ["A(spline(1, 2, 3))"]


@given(
    first=st.floats(1e-6, 1e6),
    last=st.floats(1e-6, 1e6),
    count=st.integers(2, 9),
    kind=st.sampled_from(["geom", "lin"]),
)
def test_sweeps_end_where_they_say_in_equal_steps(first, last, count, kind):
    values = [float(text[4:-1]) for text in expand(f"A(x={kind}({first!r}, {last!r}, {count}))")]
    assert len(values) == count
    assert values[0] == pytest.approx(first, rel=1e-9)
    assert values[-1] == pytest.approx(last, rel=1e-9)
    scale = [math.log(v) for v in values] if kind == "geom" else values
    rounding = 1.1e-3 if kind == "geom" else 1e-5  # four digits between the ends
    steps = [b - a for a, b in itertools.pairwise(scale)]
    assert steps == pytest.approx([(scale[-1] - scale[0]) / (count - 1)] * (count - 1), rel=1e-6, abs=rounding)


@pytest.mark.parametrize(
    "inside", ["", "1", "1, 2", "1, 2, 0", "1, 2, -1", "1, 2, 2.5", "a, 2, 3", "1, 2, 3, 4", "'a', 2, 3", "1, 2, x"]
)
@pytest.mark.parametrize("kind", ["geom", "lin"])
def test_wrong_sweeps(kind, inside):
    with pytest.raises(InputError, match="is not a sweep"):
        expand(f"A(x={kind}({inside}))")


@pytest.mark.parametrize("ends", ["0, 1", "-1, 1", "1, 0"])
def test_geometric_sweeps_stay_above_zero(ends):
    with pytest.raises(InputError, match="above 0"):
        expand(f"A(x=geom({ends}, 3))")


def test_summary_is_the_first_line():
    assert summary(defenses.LaplaceNoise).startswith("Laplace noise of scale")
    assert "\n" not in summary(defenses.LaplaceNoise)
    assert summary(type("Bare", (), {})) == ""
