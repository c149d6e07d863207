"""Some 300 bad inputs for the command line. Each must end with status 2 and a message within ten seconds.

``PYTHONPATH=src python tests/bad_inputs.py`` runs them all; the suite runs a sample (`test_bad_inputs.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medpfl import Plan, Record, Update, Weights, attacks, cli, defenses, models
from medpfl.auditing.store import AUDIT
from medpfl.core.spec import registry
from medpfl.models import LeNet

LIMIT = 10
"""Seconds."""
TINY = ["--model", "LeNet('idlg')", "--attack", "iDLG(steps=2)", "--images", "2", "--size", "16"]


class Case(NamedTuple):
    """A bad input: its name, and its command line."""

    name: str
    words: list[str]


def cases(folder: Path) -> Iterator[Case]:
    """Yield all bad inputs, with their files in a folder."""
    for make in (_options, _specs, _configs, _records, _checkpoints, _findings, _weights, _images, _own_parts):
        yield from make(folder)


def _options(folder: Path) -> Iterator[Case]:
    numbers = {
        "audit": ("images", "batch-size", "draws", "size", "clients", "local-images", "epochs", "learning-rate",
                  "momentum", "weight-decay", "seed", "memory", "delta"),
        "train": ("rounds", "holdout", "fraction", "decay", "server-momentum", "epochs", "clients"),
        "frontier": ("seeds", "round", "images-per-update"),
    }  # fmt: skip
    for command, names in numbers.items():
        for name in names:
            for value in ("-1", "nan", "x", "99999999999999999999", "1e300"):
                yield Case(f"{command} --{name} {value}", [command, f"--{name}={value}", "--out", str(folder / "o")])
    for words in (
        ["audit", "--out", "a\0b"], ["audit", "--defense=LaplaceNoise(scale=geom(1,2,100000000))"],
        ["audit", "--defense=LaplaceNoise(scale=lin(1e999,2,3))"], ["audit", "--model", "(" * 3000],
        ["audit", "--model", "-" * 3000 + "1"], ["audit", "--attack", "DLG" + " " * 10_000], ["audit", "--grant=x"],
        ["audit", "--device=nowhere"], ["audit", "--rounds=1,x"], ["audit", "--fail-on=x"], ["audit", "--mode=x"],
        ["report", "/nowhere"], ["report", "a\0b"], ["list", "nothing"], ["nothing"], ["frontier", "--limit=asr<=9"],
    ):  # fmt: skip
        yield Case(" ".join(words)[:60], words)


def _specs(_: Path) -> Iterator[Case]:
    """Return specs for every argument of every built-in part, with an absurd number and with a non-number."""
    for option, package in (("attack", attacks), ("defense", defenses), ("model", models)):
        for name, make in registry(package).items():
            for field in dataclasses.fields(make):
                for value in ("1e300", "{'a': [1]}"):
                    text = f"{name}({field.name}={value})"
                    yield Case(text, ["audit", *TINY, f"--{option}={text}"])


def _configs(folder: Path) -> Iterator[Case]:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    )
    texts: dict[str, bytes] = {
        "bomb": bomb.encode(), "binary": bytes(range(256)), "deep": b"a: " + b"[" * 5000,
        "tag": b"a: !!python/name:os.x",
        "list": b"- 1\n", "text": b"hello", "empty": b"", "nested": b"config: other.yaml\n", "number key": b"1: 2\n",
        "no option": b"imagse: 3\n", "date": b"images: 2024-99-99\n", "null byte": b"out: \"a\\0b\"\n",
        "huge": b"images: 99999999999999999999999\n", "nan": b"learning_rate: .nan\n",
        "wide": b"x: " + b"a" * (2 << 20),
        "many": b"attack:\n" + b"- x\n" * 30_000, "self": b"a: &a [*a]\n", "utf-16": "images: 3".encode("utf-16"),
        "no mapping": b"attack: {a: 1}\n", "wrong spec": b"attack: ['nowhere_at_all:Evil()']\nmodel: 'a.py:b'\n",
    }  # fmt: skip
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        path.write_bytes(text)
        yield Case(f"yaml {name}", ["audit", "--config", str(path)])
    os.mkfifo(folder / "pipe.yaml")
    for place in (folder / "pipe.yaml", Path("/dev/zero"), folder, folder / "none.yaml"):
        yield Case(f"yaml {place.name}", ["audit", "--config", str(place)])
    path = folder / "recommended.yaml"
    for text in ("model: 'x.py:make'", "defense: [\"os:system('id')\"]", "weights: /etc/passwd", "data: /etc"):
        other = folder / f"r{abs(hash(text))}.yaml"
        other.write_text(f"# Recommended by medpfl frontier under asr<=0.1.\n{text}\n")
        yield Case(f"recommended {text}", ["train", "--config", str(other)])
    path.write_text("defense: ['x.py:Evil()']\n")
    yield Case("recommended by its name", ["train", "--config", str(path)])


def _picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.random.default_rng(seed).random((16, 16)) * 255).astype("uint8")).save(path)


def make_record(folder: Path) -> tuple[Path, Path]:
    """Create a record and the folder with its image."""
    _picture(folder / "truth" / "a" / "0.png", 0)
    network = LeNet("idlg").build((1, 16, 16), 2, 0)
    weights = Weights.of(network)
    update = Update({name: torch.zeros_like(t) for name, t in weights.parameters.items()}, "gradient", {}, 1)
    Record(update, Plan(), weights, image_shape=(1, 16, 16), classes=("a", "b")).save(folder / "r")
    Record.load(folder / "r")
    return folder / "r", folder / "truth"


def header_of(file: Path, key: str) -> dict[str, Any]:
    """Return the JSON in a safetensors file's header."""
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()[key])


def with_header(file: Path, out: Path, key: str, header: Any) -> Path:
    """Return the same tensors under another header."""
    save_file(load_file(file), out, {key: header if isinstance(header, str) else json.dumps(header)})
    return out


WRONG: tuple[Any, ...] = ([[1], {}], {"a": 1}, "x" * 9000, 10**12, -1, 1e300, True, [None])


PLAN = dataclasses.asdict(Plan())
"""The plan in a record of version 1."""


def _records(folder: Path) -> Iterator[Case]:
    record, truth = make_record(folder)
    header = header_of(record, "medpfl-update")
    words = ["--truth", str(truth), "--model", "LeNet('idlg')", "--attack", "iDLG(steps=2)"]
    right = {("sends_buffers", 6)}  # true is right there
    for field in ("kind", "num_samples", "sends_buffers", "steps", "image_shape", "classes", "defense"):
        for number, wrong in enumerate(WRONG):
            if (field, number) not in right:
                path = with_header(record, folder / f"r-{field}-{number}", "medpfl-update", header | {field: wrong})
                yield Case(f"record {field} {str(wrong)[:20]}", ["audit", str(path), *words])
    for number, field in enumerate(PLAN):
        old = header | {"version": 1, "plan": {**PLAN, field: [[1], {}]}}
        path = with_header(record, folder / f"r-plan-{number}", "medpfl-update", old)
        yield Case(f"record plan {field}", ["audit", str(path), *words])
    path = with_header(record, folder / "r-deep", "medpfl-update", "[" * 100_000)
    yield Case("record deep", ["audit", str(path), *words])


def _checkpoints(folder: Path) -> Iterator[Case]:
    network = LeNet("idlg").build((1, 16, 16), 2, 0)
    about = {"version": 1, "round": 0, "model": "LeNet('idlg')", "defense": "NoDefense()", "image_shape": [1, 16, 16],
             "classes": 2, "seed": 0}  # fmt: skip
    _picture(folder / "data" / "a" / "0.png", 0)
    _picture(folder / "data" / "b" / "1.png", 1)
    for field in ("model", "defense", "image_shape", "classes", "seed", "round"):
        for number, wrong in enumerate([*WRONG[:6], "os:system('id')"]):
            if field == "seed" and number in (3, 4):
                continue  # any whole number is a seed
            out = folder / f"training-{field}-{number}" / "round-0"
            out.mkdir(parents=True)
            tensors = {k: t.contiguous() for k, t in network.state_dict().items()}
            save_file(tensors, out / "weights.safetensors", {"medpfl-round": json.dumps(about | {field: wrong})})
            words = ["--model", str(out), "--attack", "iDLG(steps=2)", "--images", "2", "--size", "16"]
            yield Case(f"checkpoint {field} {str(wrong)[:20]}", ["audit", str(folder / "data"), *words])


def _findings(folder: Path) -> Iterator[Case]:
    run = {"kind": "audit", "format": AUDIT.format, "identity": {"pixels": ""}, "settings": {}, "jobs": []}
    frontier, training = ({"kind": kind, "format": 2, "identity": {}} for kind in ("frontier", "training"))
    texts = {
        "[1]": run, "3": run, "{}": run, '{"stack": [1]}': run, '{"scores": null}': run, "NaN": run,
        "[" * 50_000: run, "": run | {"identity": [1]}, "x": run | {"settings": 5}, "y": run | {"jobs": 3},
        "z": run | {"format": [1]}, "v": run | {"settings": {"bounds": 3}}, "w": frontier, "u": training,
        "t": {"format": 3, "identity": {}}, "s": run | {"kind": "reproduction"}, "r": run | {"kind": [1]},
    }  # fmt: skip
    for number, (line, known) in enumerate(texts.items()):
        out = folder / f"run-{number}"
        (out / "share").mkdir(parents=True)
        (out / "run.json").write_text(json.dumps(known))
        (out / "share/findings.jsonl").write_text(f"{line}\n{line}\n")
        (out / "share/rounds.jsonl").write_text(f"{line}\n{line}\n")
        yield Case(f"report {line[:20]} {number}", ["report", str(out)])


def _weights(folder: Path) -> Iterator[Case]:
    contents = {"empty": b"", "nonsense": b"nonsense", "header": b"\xff" * 8 + b"{}", "zip": b"PK\x03\x04" + b"x" * 50}
    for name, content in contents.items():
        for suffix in (".safetensors", ".pt"):
            path = folder / f"{name}{suffix}"
            path.write_bytes(content)
            yield Case(f"weights {path.name}", ["audit", *TINY, "--weights", str(path)])
    torch.save({"a": torch.zeros(2)}, folder / "other.pt")
    torch.save([1, 2], folder / "list.pt")
    for place in (folder / "other.pt", folder / "list.pt", folder, Path("/dev/null"), folder / "none.pt"):
        yield Case(f"weights {place.name}", ["audit", *TINY, "--weights", str(place)])


def _images(folder: Path) -> Iterator[Case]:
    contents = {"a.npz": b"PK\x03\x04nothing", "b.npz": b"", "c.dcm": b"\0" * 128 + b"DICM" + b"\xff" * 40,
                "d.nii": b"\x5c\x01\0\0" + b"\xff" * 400, "e.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 30}  # fmt: skip
    for name, content in contents.items():
        place = folder / f"images-{name}"
        (place / "k").mkdir(parents=True)
        (place / "k" / name).write_bytes(content)
        yield Case(f"data {name}", ["audit", str(place), *TINY])
        yield Case(f"data file {name}", ["audit", str(place / "k" / name), *TINY])


def _own_parts(folder: Path) -> Iterator[Case]:
    texts = {
        "syntax": "def (", "raises": "raise RuntimeError('x')", "none": "", "returns": "def make(): return 3",
        "fails": "def make(): raise KeyError('x')", "takes": "def make(a, b, c): pass", "value": "make = 3",
        "binary": "\x00",
    }  # fmt: skip
    for name, text in texts.items():
        path = folder / f"own_{name}.py"
        path.write_text(text)
        for option in ("model", "attack", "defense"):
            yield Case(f"own {option} {name}", ["audit", *TINY, f"--{option}={path}:make"])


class TooSlowError(Exception):
    """A bad input that was not refused in time."""


def failure_of(case: Case) -> str:
    """Return the fault in the answer to a bad input, or ``""``."""

    def late(*_: Any) -> None:
        raise TooSlowError

    out, err, started = io.StringIO(), io.StringIO(), time.process_time()
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(12 * LIMIT)  # of a machine that others use too
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(case.words)
    except TooSlowError:
        return "it hangs"
    except BaseException as error:  # whatever comes out is a traceback to the person
        return f"traceback: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    said = err.getvalue()
    if status != 2:
        return f"status {status}: {(said or out.getvalue())[-200:]}"
    if "Traceback" in said or "medpfl: error: " not in said:
        return f"it says {said[:200]!r}"
    spent = time.process_time() - started
    return f"{spent:.1f} s" if spent > LIMIT else ""


def all_failures(wanted: Callable[[int], bool] = lambda _: True) -> tuple[int, list[str]]:
    """Return the number of bad inputs, and the faults in the answers to them."""
    with tempfile.TemporaryDirectory() as name:
        given = [case for number, case in enumerate(cases(Path(name))) if wanted(number)]
        found = []
        for case in given:
            if why := failure_of(case):
                found.append(f"{case.name}: {why}")
                print(found[-1], flush=True)
    return len(given), found


if __name__ == "__main__":
    count, wrong = all_failures()
    print(f"{count} bad inputs, {len(wrong)} answered wrongly")
    sys.exit(bool(wrong))
