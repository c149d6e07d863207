"""``python -m benchmarks silence``: measure how long each command is silent, and the finish time that it tells.

Each command runs in a process of its own, with its output in a pipe, as in a log. The target on an idle machine: the
first line in less than one second, and then a sign of life at least every two seconds. The time that is told to be left
after a tenth of the command, or as soon as one is told, is compared with the true one: right is a factor from 0.5 to 2.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import NamedTuple

__all__ = ["COMMANDS", "Silence", "lines", "measured", "parsed"]

FIRST, LONGEST = 1.0, 2.0
"""The targets, in seconds."""
ROOT = Path(__file__).resolve().parents[1]

_FAST = """--model "LeNet('idlg')" --attack iDLG --images 4"""
_MODEL = """import torch
from pathlib import Path
from torch import nn

def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.Sigmoid(), nn.Linear(8, 2))

if __name__ == "__main__":
    import medpfl
    from PIL import Image
    model, generator = make_model(), torch.Generator().manual_seed(0)
    torch.save(model.state_dict(), "before.pt")
    for i in range(2):
        Path("truth", f"class{i}").mkdir(parents=True)
        pixels = (torch.rand(32, 32, generator=generator) * 255).byte().numpy()
        Image.fromarray(pixels).save(f"truth/class{i}/{i}.png")
    for parameter in model.parameters():
        parameter.data -= 0.01 * torch.randn(parameter.shape, generator=generator)
    torch.save(model.state_dict(), "after.pt")
"""

COMMANDS = {
    "help": "--help",
    "audit, help": "audit --help",
    "list": "list",
    "demo": "demo --out demo",
    "evaluate": "evaluate samples --size 16 --out evaluation",
    "audit": f"audit samples {_FAST} --out audit",
    "audit, ResNet-18": "audit samples --model ResNet(18) --mode eval --attack GradInv(steps=20) --images 2",
    "report": "report audit",
    "compare": "compare demo audit",
    "check-model": "check-model LeNet",
    "check-model, ResNet-18": "check-model ResNet(18)",
    "train": "train samples --rounds 10 --out train",
    "audit, rounds": "audit samples --model train --rounds 0,2 --attack iDLG(steps=20) --images 4 --out rounds",
    "frontier": f"frontier samples {_FAST} --defense LaplaceNoise(scale=geom(0.001,0.1,2)) --rounds 5 --out frontier",
    "reproduce": "reproduce noise --data samples --quick --part iDLG --out reproduction",
    "record": "record before.pt after.pt --model small.py:make_model --batch-size 2 --learning-rate 0.1 --out records",
    "inspect": "inspect RECORD --model small.py:make_model",
    "forget": "forget records",
}
"""The measured commands, in an order in which each finds what it needs."""


class Silence(NamedTuple):
    """A command's silences.

    Attributes:
        first: seconds before the first byte of output.
        longest: longest time in seconds between two outputs after the first, or from the last to the end.
        seconds: duration of the command.
        status: exit status.
        told: whole time by the line that told it after a tenth of the command, or first after that, over the true one;
            ``None`` if none did.
    """

    first: float
    longest: float
    seconds: float
    status: int
    told: float | None = None


def measured(command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> Silence:
    """Run a command, and return its silences; both output streams count."""
    began = monotonic()
    heard: list[tuple[float, bytes]] = []
    with subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:

        def read(stream: int) -> None:
            while text := os.read(stream, 65536):
                heard.append((monotonic() - began, text))

        assert process.stdout is not None
        assert process.stderr is not None
        readers = [threading.Thread(target=read, args=(one.fileno(),)) for one in (process.stdout, process.stderr)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        status = process.wait()
    end = monotonic() - began
    times = [*sorted(time for time, _ in heard), end]
    longest = max((b - a for a, b in pairwise(times)), default=0.0)
    told = [
        (time + left) / end for time, text in heard if time >= end / 10 and (left := seconds_left(text)) is not None
    ]
    return Silence(times[0], longest, end, status, told[0] if told else None)


def seconds_left(text: bytes) -> float | None:
    """Return the seconds that a line tells to be left; ``None`` if it tells none.

    >>> seconds_left(b"0:00:10  1 of 4 images  about 1 min 30 s left, until 12:00"), seconds_left(b"reading")
    (90.0, None)
    """
    found = re.search(rb"about (?:(\d+) h )?(?:(\d+) min )?(?:(\d+) s )?left", text)
    if found is None:
        return None
    return float(sum(int(number or 0) * unit for number, unit in zip(found.groups(), (3600, 60, 1), strict=True)))


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield a table, a row for each command."""
    env = {**os.environ, "PYTHONPATH": str(Path(chosen.checkout).resolve() / "src")}
    yield "| command | first line, s | longest silence, s | whole, s | told / true | status |"
    yield "| --- | --- | --- | --- | --- | --- |"
    with TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "small.py").write_text(_MODEL)
        subprocess.run([sys.executable, "small.py"], cwd=place, env=env, check=True)
        for name, words in COMMANDS.items():
            if (chosen.commands and name not in chosen.commands) or not go_on():
                continue
            found = [str(path) for path in place.glob("records/*.safetensors")]
            said = [found[0] if word == "RECORD" and found else word for word in shlex.split(words)]
            one = measured([sys.executable, "-m", "medpfl.cli", *said], place, env)
            first, longest = (f"{s:.1f}{' !' * (s > most)}" for s, most in zip(one[:2], (FIRST, LONGEST), strict=True))
            told = "" if one.told is None else f"{one.told:.1f}"
            yield f"| {name} | {first} | {longest} | {one.seconds:.0f} | {told} | {one.status} |"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks silence", description=__doc__)
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), help="commands to run (default: all)")
    parser.add_argument("--checkout", default=str(ROOT), help="checkout whose commands are run (default: this one)")
    return parser.parse_args(arguments)
