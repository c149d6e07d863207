"""Every kind of file that is loaded, with code named in each of its texts: nothing is imported or called."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medpfl import InputError, Plan, Record, Update, Weights
from medpfl.auditing.records.recorded import read
from medpfl.auditing.report import reread
from medpfl.cli.config_files import check_files
from medpfl.core.experiments.training import Training
from medpfl.inputs.checkpoint import checkpoint_at
from medpfl.inputs.filters import defense_in
from medpfl.models import LeNet
from medpfl.reproduction.ledger import Claims
from medpfl.runs.study_key import class_names
from medpfl.tradeoff.run import remake
from medpfl.training.report import reread_training
from medpfl.training.state_files import unpacked
from tests.auditing.audit_cases import some_images, tiny
from tests.training.training_cases import small

CALLS = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pty.spawn",
    "socket.connect",
    "urllib.Request",
)
_seen: list[str] = []
_watched = [False]


def _watch(event: str, given: tuple[Any, ...], on_request: list[bool] = _watched) -> None:
    """Record events; an audit hook, which stays installed, beyond this module's end too, and counts only on request."""
    if on_request[0]:
        code = event == "exec" and "hostile" in getattr(given[0], "co_filename", "")
        named = event in ("import", "open") and any("hostile" in str(one) for one in given[:2])
        # What a spec's syntax tree is made of comes from no file; what would be run does.
        named = named or (event == "compile" and "hostile" in str(given[1]))
        if code or named or event in CALLS:
            _seen.append(f"{event} {given[:2]}")


sys.addaudithook(_watch)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    _seen.clear()
    _watched[0] = True
    try:
        yield _seen
    finally:
        _watched[0] = False


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> list[str]:
    """Return specs that would leave a mark if any part of them ran."""
    (tmp_path / "hostile.py").write_text("open('hostile-marker', 'w').close()\ndef Evil(*_, **__): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("hostile", None)
    return [
        "hostile:Evil()", f"{tmp_path}/hostile.py:Evil()", "os:system('touch hostile-marker')",
        "__import__('hostile').Evil()", f"ResNet(depth=18, weights='{tmp_path}/hostile.py')",
    ]  # fmt: skip


def poisoned(value: Any, spec: str) -> Iterator[Any]:
    """Yield copies of a JSON value, each with a different text replaced."""
    places: list[tuple[Any, ...]] = []

    def walk(one: Any, where: tuple[Any, ...]) -> None:
        if isinstance(one, str):
            places.append(where)
        elif isinstance(one, dict | list):
            for key, inner in one.items() if isinstance(one, dict) else enumerate(one):
                walk(inner, (*where, key))

    walk(value, ())
    for *above, last in places:
        copied = copy.deepcopy(value)
        inside = copied
        for key in above:
            inside = inside[key]
        inside[last] = spec
        yield copied


def header(file: Path, key: str) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()[key])


def in_safetensors(file: Path, key: str, call: Callable[[], Any], hostile: list[str]) -> int:
    tensors, known = load_file(file), header(file, key)
    return attempts(known, hostile, lambda one: save_file(tensors, file, {key: json.dumps(one)}), call)


def in_json(file: Path, call: Callable[[], Any], hostile: list[str]) -> int:
    return attempts(json.loads(file.read_text()), hostile, lambda one: file.write_text(json.dumps(one)), call)


def in_lines(file: Path, call: Callable[[], Any], hostile: list[str]) -> int:
    first, *rest = file.read_text().splitlines()
    return attempts(
        json.loads(first), hostile, lambda one: file.write_text("\n".join([json.dumps(one), *rest]) + "\n"), call
    )


def attempts(known: Any, hostile: list[str], put: Callable[[Any], Any], call: Callable[[], Any]) -> int:
    """Read the file with each text poisoned by each spec in turn; return the number of attempts."""
    count = 0
    for number, _ in enumerate(list(poisoned(known, ""))):
        spec = hostile[number % len(hostile)]
        put(list(poisoned(known, spec))[number])
        with watched() as seen, contextlib.suppress(InputError):
            call()
        assert seen == []
        assert "hostile" not in sys.modules
        assert not Path("hostile-marker").exists()
        count += 1
    put(known)
    return count


def test_the_watch_would_see_it(hostile):
    with watched() as seen:
        import hostile as _  # type: ignore[import-not-found]  # noqa: F401
    assert any("import" in one for one in seen)
    Path("hostile-marker").unlink()
    sys.modules.pop("hostile")


def test_records(hostile, tmp_path):
    network = LeNet("idlg").build((1, 16, 16), 2, 0)
    weights = Weights.of(network)
    tensors = {name: torch.zeros_like(t) for name, t in weights.parameters.items()}
    sent, plan = Update(tensors, num_samples=1), Plan(sends=("num_samples",))
    Record(sent, plan, weights, classes=("a", "b"), defense="LaplaceNoise(scale=0.5)").save(tmp_path / "r")

    def call() -> None:
        record = read(tmp_path / "r")
        defense_in(record, tmp_path / "r")

    call()
    assert in_safetensors(tmp_path / "r", "medpfl-update", call, hostile) >= 8
    for spec in hostile:
        Record(Update(tensors), Plan(), weights, defense=spec).save(tmp_path / "r")
        with watched() as seen, pytest.raises(InputError, match="if you trust that file"):
            call()
        assert seen == []


@pytest.mark.slow
def test_directories_of_trainings(hostile, tmp_path):
    out = tmp_path / "runs" / "t"
    small(out=out, rounds=1)
    weights, state = out / "round-1" / "weights.safetensors", out / "round-1" / "state.safetensors"
    build = lambda: checkpoint_at(out).build((1, 16, 16), 2, 0)  # noqa: E731
    assert in_safetensors(weights, "medpfl-round", build, hostile) == 2
    for _ in hostile:
        hostile.append(hostile.pop(0))  # each spec in each of the two fields
        in_safetensors(weights, "medpfl-round", build, hostile)
    in_safetensors(state, "medpfl-state", lambda: unpacked(state), hostile)
    assert in_lines(out / "share/rounds.jsonl", lambda: reread_training(out), hostile) >= 3
    assert in_json(out / "run.json", lambda: reread_training(out), hostile) >= 10


@pytest.mark.slow
def test_directories_of_audits(hostile, tmp_path):
    out = tmp_path / "runs" / "a"
    tiny(some_images(8), images=1, out=out)
    assert in_lines(out / "share/findings.jsonl", lambda: reread(out), hostile) >= 12
    assert in_json(out / "run.json", lambda: reread(out), hostile) >= 15
    pixels = json.loads((out / "run.json").read_text())["identity"]["pixels"]
    assert in_json(out.parent / "medpfl-key.json", lambda: class_names(out, pixels), hostile) >= 3


@pytest.mark.slow
def test_recommendations(hostile, tmp_path):
    known = Training(defense=["LaplaceNoise(scale=0.5)"]).options()
    known = {
        n: v for n, v in known.items() if n not in ("data", "validation", "test", "weights", "sends", "out", "force")
    }
    path = tmp_path / "share" / "recommended.yaml"
    path.parent.mkdir()
    call = lambda: check_files(["train", "--config", str(path)])  # noqa: E731
    count = attempts(known, hostile, lambda one: path.write_text(yaml.safe_dump(one)), call)
    assert count >= 5
    call()
    for spec in hostile:
        for change in ({"model": spec}, {"defense": [spec]}, {"partition": spec}):
            path.write_text(yaml.safe_dump(known | change))
            with pytest.raises(InputError, match="yourself if you trust that file"):
                call()
            option = f"--{next(iter(change))}"
            check_files(["train", "--config", str(path), option, "MLP"])  # which the person's own word replaces
        path.write_text(yaml.safe_dump(known | {"defense+": [spec]}))
        with pytest.raises(InputError, match="is not a plain option name"):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"ab", b"\x08\0\0\0\0\0\0\0{}      "])
def test_pictures_that_are_none(tmp_path, content):
    out = tmp_path / "runs" / "a"
    tiny(some_images(8), images=1, out=out)
    for path in (out / "private/images").iterdir():
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read: its files are damaged"):
        reread(out)


@pytest.mark.slow
def test_a_pipe_in_place_of_the_key_is_not_opened(tmp_path):
    out = tmp_path / "runs" / "a"
    tiny(some_images(8), images=1, out=out)
    key = out.parent / "medpfl-key.json"
    key.unlink()
    os.mkfifo(key)
    with pytest.raises(InputError, match="is not a regular file"):
        reread(out)
    with pytest.raises(InputError, match="is not a regular file"):
        tiny(some_images(8), images=1, out=out)


def test_directories_of_frontiers_and_reproductions(hostile, tmp_path):
    out = tmp_path / "f"
    out.mkdir()
    identity = {"settings": ["NoDefense()", "QSGD()"], "seed": 0, "seeds": 1, "round": 0}
    known = {"kind": "frontier", "format": 2, "identity": identity, "limits": ["asr<=0.1"], "diverged": ["QSGD()"]}
    (out / "run.json").write_text(json.dumps(known))
    assert in_json(out / "run.json", lambda: remake(out), hostile) == 5
    form = {"quick": True, "weights": "w", "device": "cpu"}
    known = {"kind": "reproduction", "format": 2, "identity": {}, "sets": {"samples": True}}
    known |= {"parts": {"a": {"b": form}}}
    (out / "run.json").write_text(json.dumps(known))
    assert in_json(out / "run.json", lambda: Claims.read(out), hostile) == 3
