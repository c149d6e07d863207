"""A file can name only built-in parts, and runs nothing; every reader uses this path."""

from __future__ import annotations

import ast
import functools
import inspect
from pathlib import Path

import pytest

import medpfl
from medpfl import attacks, data, defenses, models
from medpfl.attacks import matching
from medpfl.core.errors import InputError
from medpfl.core.spec import registry
from medpfl.core.user_code.stated import check_stated, stated

SOURCE = Path(medpfl.__file__).parent
DEFENSES, MODELS = registry(defenses), registry(models)


def of_file(text, known=DEFENSES, role="defense"):
    return stated(text, known, role, "their.record", f"--{role}")


@pytest.mark.parametrize(
    "text",
    [
        "os:system('touch marker')",
        "/tmp/hostile.py:Evil()",
        "hostile.py",
        " subprocess:run(['id'])",
        "LaplaceNoise(scale=0.1) | os:getcwd()",
        "LaplaceNoise(scale=0.1) | os.getcwd()",
        "os.getcwd()",
        "(lambda: 1)()",
        "__import__('os')",
        "[LaplaceNoise][0]",
        "LaplaceNoise(scale=__import__('os').getpid())",
        "LaplaceNoise(scale=(lambda: 1)())",
        "LaplaceNoise(scale=[x for x in (1, 2)])",
        "LaplaceNoise(scale=f'{1}')",
        "LaplaceNoise(**{'scale': 1})",
        "LaplaceNoise(*[1])",
        "LaplaceNoise(scale=0.1, relative='/etc/passwd')",
        "LaplaceNoise(scale=0.1, relative='https://example.org/x')",
        "LaplaceNoise(scale=0.1, relative='cuda:1')",
        "LaplaceNoise(scale=0.1, relative='cuda')",
        "LaplaceNoise(scale=1e300)",
        "LaplaceNoise(scale=1e999)",
        "QSGD(levels=99999999999999999999)",
        "QSGD(levels=True)",
        "(" * 40 + "NoDefense" + ")" * 40,
        "-" * 3000 + "1",
        "NoDefense | " * 200 + "NoDefense",
        "NoDefense" + " " * 5000,
        "No\0Defense",
        "Nodefence",
        "",
        5,
        None,
        ["NoDefense"],
        {"a": 1},
    ],
    ids=lambda text: repr(text)[:40],
)
def test_what_is_no_part_of_ours_is_refused(text):
    with pytest.raises(InputError, match=r"in 'their.record': "):
        of_file(text)


@pytest.mark.parametrize("text", ["os:system('id')", "x.py:Evil", "LaplaceNoise(scale=0.1, relative='../x')"])
def test_who_trusts_the_file_is_told_what_to_do(text):
    with pytest.raises(InputError, match="give --defense yourself if you trust that file"):
        of_file(text)


@pytest.mark.parametrize(
    "text", ["ResNet(18, 'weights')", "ResNet(depth=18, weights='here')", "ResNet(18, weights='/x.pt')"]
)
def test_weights_that_a_model_would_read_are_refused(text):
    with pytest.raises(InputError, match="give --model yourself if you trust that file"):
        of_file(text, MODELS, "model")


@pytest.mark.parametrize("text", ["MLP((99999999999,))", "MLP(hidden=(99999999999,))", "ViT(depth=10**9)"])
def test_numbers_are_bounded_before_anything_is_built(text, monkeypatch):
    for one in MODELS.values():
        monkeypatch.setattr(one, "build", lambda *_: pytest.fail("nothing is built"))
    with pytest.raises(InputError):
        of_file(text, MODELS, "model")


@pytest.mark.parametrize("package", [attacks, defenses, models])
def test_what_our_own_parts_write_is_read_back(package):
    nested = registry(matching)
    for name, make in registry(package).items():
        check_stated(repr(make()), "part", "run.json", "--x")
        if package is not attacks:  # whose parts within parts are of another registry, which no file states
            assert stated(repr(make()), registry(package), "part", "run.json", "--x") == make(), name
    assert nested


@pytest.mark.parametrize("text", ["LaplaceNoise(scale=1/300)", "LeNet('dlg')", "MLP((8, 8))", "ConvNet(norm='batch')"])
def test_what_people_write_is_read_too(text):
    assert of_file(text, DEFENSES | MODELS, "part") is not None


def test_weights_by_a_published_name_are_no_path():
    assert of_file("ResNet(depth=18, weights='IMAGENET1K_V1')", MODELS, "model").weights == "IMAGENET1K_V1"


def test_no_part_of_ours_takes_a_place_first():
    """`check_stated` allows a text as the first argument, whose name it does not know."""
    for package in (attacks, defenses, models, matching):
        for name, make in registry(package).items():
            first = next(iter(inspect.signature(make).parameters), "")
            assert first not in ("path", "weights", "file", "url", "device", "labels"), name
    assert "path" in inspect.signature(data.ImageFolder).parameters, "and what a data source is, no file states"


# --- every reader of a file ----------------------------------------------------------------------------------------

READS = {
    "np.load", "torch.load", "json.load", "Record.load", "loads",
    "safe_load", "safe_open", "load_file", "read_text", "read_bytes", "read_json", "read_lines",
    "read_yaml", "read_rows", "read_rounds", "known_in", "noted", "DictReader", "reader", "open",
}  # fmt: skip
TRUSTED = {
    "medpfl.inputs.parts": {"attacks_of", "defenses_of", "model_of", "partition_of", "source_of"},
    "medpfl.core.user_code.loading": {"find"},
    "medpfl.core.spec": {"build", "construct"},
    "medpfl.models.user": {"UserModel"},
    "importlib": {"import_module"},
}
EXCEPT = {
    "core/user_code/stated.py": "it is the door of what files state, and checks before it builds",
    "models/user.py": "it is what a person's place:name becomes, and reads no file itself",
}


@functools.cache
def modules() -> dict[str, ast.Module]:
    return {str(path.relative_to(SOURCE)): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}


@functools.cache
def readers() -> dict[str, ast.Module]:
    """Return the package's modules that read a file, by path."""
    found = {}
    for path, tree in modules().items():
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if (calls | {name.split(".")[-1] for name in calls}) & READS:
            found[path] = tree
    return found


def trusted_in(tree: ast.Module) -> set[str]:
    """Return the functions for trusted input that a module imports or could reach through a module's name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name for alias in node.names}
            found |= names & TRUSTED.get(node.module, set())
            found |= {f"{node.module}.{n}" for n in names if f"{node.module}.{n}" in TRUSTED}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in TRUSTED}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "compile", "__import__"):
            found.add(ast.unparse(node.func))
    return found


@pytest.mark.slow
def test_the_readers_are_found():
    """A test on readers that finds none would pass."""
    named = set(readers())
    assert {
        "inputs/checkpoint.py", "auditing/records/recorded.py", "auditing/report.py", "runs/directory.py",
        "training/state_files.py", "auditing/store.py", "training/report.py", "training/store.py",
        "core/experiments/frontier.py", "core/records/files.py", "core/experiments/yaml_files.py", "tradeoff/run.py",
        "models/weights.py", "cli/config_files.py", "reproduction/ledger.py",
    } <= named  # fmt: skip


def test_no_reader_of_a_file_has_the_door_that_runs_code():
    both = {path: found for path, tree in readers().items() if (found := trusted_in(tree)) and path not in EXCEPT}
    assert both == {}


@pytest.mark.slow
def test_the_door_that_runs_code_is_used_by_what_a_person_calls_only():
    users = {path for path, tree in modules().items() if trusted_in(tree)} - set(EXCEPT)
    assert users == {
        "__init__.py", "integrations/flower/__init__.py",
        "cli/catalog.py", "core/user_code/loading.py",  # they import our own modules by name
        "inputs/parts.py", "auditing/isolating.py", "inspection/check.py",
        "auditing/run.py", "auditing/records/run.py", "training/splits.py",
        "training/train.py", "tradeoff/tasks.py", "reproduction/accuracy.py", "recording/states.py",
        "federation/basis.py", "assumptions/cases.py",
        "inputs/standard.py",  # it names the registry's own attacks
        "integrations/defending.py",  # a defense that a site writes into its own app
        "runs/identity.py", "models/sized.py",  # they ask of a model whether it is a person's own
        "isolation/answers.py",  # the process of an attack that a person gave by its place: it has no other purpose
    }  # fmt: skip
