"""Harm that an attack can do to its own process, and to the audit that waits for its answer."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

import medpfl
from medpfl import InputError, Run
from medpfl.auditing.store import read_rows
from medpfl.core.roles import Attack
from medpfl.isolation.parent import Worker
from medpfl.isolation.process import Process
from tests.isolation.isolated_cases import audited, file_of, some_images

pytestmark = pytest.mark.slow  # they share a fixture that takes seconds

BAD = '''
@dataclass(frozen=True, repr=False)
class Bad(Attack):
    """Does what its argument says."""
    what: str = "nothing"
    def __call__(self, seen, generator):
        print("before " + self.what)
        return {
            "nothing": lambda: answer(seen),
            "raises": lambda: 1 / 0,
            "memory": lambda: (_ for _ in ()).throw(MemoryError()),
            "refuses": lambda: (_ for _ in ()).throw(InputError("not for me")),
            "exits": lambda: sys.exit(0),
            "stops": lambda: (_ for _ in ()).throw(GeneratorExit()),
            "interrupts": lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
            "a list": lambda: [1, 2],
            "a list in it": lambda: answer(seen, loss=[1.0] * len(seen)),
            "one more": lambda: answer(seen, torch.zeros(len(seen) + 1, seen.num_images, *seen.image_shape)),
            "larger": lambda: answer(seen, torch.zeros(len(seen), seen.num_images, 1, 17, 17)),
            "whole": lambda: answer(seen, gray(seen).long()),
            "complex": lambda: answer(seen, gray(seen).to(torch.complex64)),
            "labels": lambda: answer(seen, labels=torch.zeros(len(seen), seen.num_images)),
            "backwards": lambda: answer(seen, steps=-torch.ones(len(seen), dtype=torch.long)),
            "unknown end": lambda: answer(seen, ended=("well",) * len(seen)),
            "engine": lambda: answer(seen, engine="\\x1b[2J"),
            "no text": lambda: answer(seen, certificates=(torch.ones(1),) * len(seen)),
            "one text": lambda: answer(seen, certificates="sure"),
            "few texts": lambda: answer(seen, certificates=("sure",)),
            "many texts": lambda: answer(seen, certificates=("sure",) * 1000),
            "a long text": lambda: answer(seen, certificates=("x" * 100000,) * len(seen)),
            "few names": lambda: answer(seen, found_by=("iDLG()",)),
            "a text of signs": lambda: answer(seen, certificates=("", "\\x1b[2J\\ud800")),
            "not a number": lambda: answer(
                seen, torch.full_like(gray(seen), torch.nan), ended=("nonfinite",) * len(seen)
            ),
        }[self.what]()
'''

SAID = {
    "raises": r"Bad\(what='raises'\) cannot attack this model: division by zero",
    "memory": "out of memory, with the update of one victim alone: lower --batch-size or --size",
    "refuses": "^not for me$",
    "exits": r"cannot attack this model: it ended the program \(SystemExit: 0\)",
    "stops": r"cannot attack this model: it raised GeneratorExit",
    "interrupts": r"cannot attack this model: it raised KeyboardInterrupt",
    "a list": "it returned a list, not a medpfl.Reconstruction",
    "a list in it": "the reconstruction's loss must be a tensor, not a list",
    "one more": r"the reconstruction's guesses: shape \(3, 1, 1, 16, 16\), must be \(2, 1, 1, 16, 16\)",
    "larger": "the reconstruction's guesses: shape",
    "whole": "the reconstruction's guesses: type torch.int64, must be real numbers",
    "complex": "complex",
    "labels": "the reconstruction's labels: type torch.float32, must be whole numbers",
    "backwards": "the reconstruction's steps must not be below 0",
    "unknown end": "the reconstruction's ended must be 2 words, each one of converged",
    "engine": "the reconstruction's engine must be a short text",
    "no text": r"Bad\(what='no text'\) cannot attack this model: the reconstruction's certificates must be",
    "one text": "the reconstruction's certificates must be a tuple of texts",
    "few texts": r"Bad\(what='few texts'\): the reconstruction has certificates of length 1: expected 2",
    "many texts": "the reconstruction has certificates of length 1000: expected 2",
    "a long text": "the reconstruction has a certificate of 100,000 characters for victim 0: at most 300 are allowed",
    "few names": r"Bad\(what='few names'\): the reconstruction has found_by of length 1: expected 2",
    "a text of signs": r"a certificate for victim 1 with the character '\\x1b': only printable ASCII is allowed",
}

DIES = """
@dataclass(frozen=True, repr=False)
class Dies(Attack):
    def __call__(self, seen, generator):
        if torch.rand(1, generator=generator) < 2 and seen.views[0].channel is not None:
            print("the last word")
            os._exit(3)
        return answer(seen)
"""

# Another program in the worker's place: it answers the first request as the worker does, and then does one thing.
FAKE = """
import json, os, struct, sys, time

def frame(head, payload=b""):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    os.write(1, struct.pack("<QQ", len(text), len(payload)) + text + payload)

def request():
    lengths = struct.unpack("<QQ", os.read(0, 16))
    for length in lengths:
        while length:
            length -= len(os.read(0, length))

request()
frame({"system": ["a test"], "tensors": []})
request()
"""
ENDS = {
    "os.kill(os.getpid(), 11)": "its process was ended by SIGSEGV",
    "os.kill(os.getpid(), 9)": "its process was ended by SIGKILL; if it ran out of memory, lower --memory",
    "os._exit(0)": "its process ended with status 0 before it answered",
    "print('one\\ntwo', file=sys.stderr); sys.exit(5)": r"status 5 before it answered \(it printed: one / two\)",
    "os.close(1); time.sleep(60)": "it closed the connection to the audit",
    "os.write(1, b'what an attack prints, in place of a frame')": "answered with a header of .* bytes, above the limit",
    "frame(b'{')": "answered with a header that is not JSON",
    "frame(b'[' * 100000)": "answered with a header that is not JSON",
    "frame([1])": "answered with a header that is not a JSON object",
    "frame({}, b'x')": "answered with a payload that is not safetensors",
    "frame({'tensors': ['a']})": "answered with tensors that do not match its header",
    "frame({'tensors': [[]]})": "answered with a header that does not name its tensors",
    "frame({'tensors': []}) if os.fork() else time.sleep(60)": "sent an unusable description of it",
    "os._exit(0) if os.fork() else time.sleep(60)": "its process ended with status 0",
    "os.write(1, struct.pack('<QQ', 2, 1 << 40) + b'{}')": "a payload of 1,099,511,627,776 bytes, above the limit of",
}


@pytest.fixture
def bad(tmp_path):
    return file_of(tmp_path, "bad", BAD)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "said"), SAID.items(), ids=SAID.keys())
def test_an_attack_that_raises_or_answers_amiss_is_named(bad, shared, what, said):
    with pytest.raises(InputError, match=said):
        audited([f"{bad}:Bad(what='{what}')"])


@pytest.mark.slow
def test_its_process_goes_on_after_that_and_prints_under_its_name(bad, shared, capfd):
    attack = f"{bad}:Bad(what='not a number')"
    report = audited([attack])
    assert {flag for row in report.rows for flag in row.flags} >= {"nonfinite"}
    until = time.monotonic() + 10
    shown = ""
    while "before not a number" not in shown and time.monotonic() < until:
        shown += capfd.readouterr().err
        time.sleep(0.05)
    assert "[Bad(what='not a number')] before not a number\n" in shown


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
        ("raise ValueError('at import')", "ValueError: at import"),
        ("def Mine(): return 3", "3 cannot be used as attack"),
        ("Other = 3", "has no function or class 'Mine'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_as_it_was_given(tmp_path, monkeypatch, shared, code, said):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as raised:
        audited(["broken.py:Mine"])
    assert str(tmp_path) not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "said"), ENDS.items(), ids=[str(i) for i in range(len(ENDS))])
def test_a_process_that_ends_or_says_what_is_no_answer_is_named(tmp_path, monkeypatch, code, said):
    (tmp_path / "a_fake_worker.py").write_text(FAKE + code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker(program="a_fake_worker")
    assert worker.system == ["a test"]
    try:
        with pytest.raises(InputError, match=f"attack mine.py:Mine: .*{said}"):
            worker.attack("mine.py:Mine")
    finally:
        began = time.monotonic()
        worker.close()
    assert time.monotonic() - began < 5
    assert not _runs(worker.number)


@pytest.mark.slow
def test_the_rows_that_were_finished_stay_when_it_dies(tmp_path):
    """One run is killed from inside, by a defense whose disclosure the attack gets."""
    file, out = file_of(tmp_path, "dies", DIES), tmp_path / "runs" / "a"
    with pytest.raises(InputError, match=r"attack Dies\(\): .*ended with status 3 .*\(it printed: the last word\)"):
        audited([f"{file}:Dies"], defenses=["LaplaceNoise(scale=0.1)"], out=out)
    rows = list(read_rows(out / "share/findings.jsonl"))
    assert len(rows) == 6, "a random update, the control, and the defense untold of"


@pytest.mark.slow
def test_ctrl_c_ends_it_within_two_seconds_and_its_directory_is_removed(tmp_path, monkeypatch, ctrl_c):
    (tmp_path / "a_fake_worker.py").write_text(FAKE + "open('left', 'w').close()\nwhile True: pass")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker(program="a_fake_worker")
    folder = Path(f"/proc/{worker.number}/cwd").readlink()
    assert list(folder.iterdir()) == []
    timer = Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))  # to the main thread
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        worker.attack("mine.py:Mine")
    began = time.monotonic()
    worker.close(0.0)
    assert time.monotonic() - began < 2
    assert not _runs(worker.number)
    assert not folder.exists()
    worker.close()  # a second time does nothing
    with pytest.raises(InputError, match="its process has ended"):
        worker.attack("mine.py:Mine")


@pytest.mark.slow
def test_what_it_starts_ends_with_it(tmp_path, monkeypatch):
    code = "child = os.fork()\nif not child: time.sleep(600)\nframe({'child': child, 'tensors': []})\nrequest()"
    (tmp_path / "a_fake_worker.py").write_text(FAKE + code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker(program="a_fake_worker")
    child = worker.ask("mine", {}).head["child"]
    assert _runs(child)
    worker.close()
    until = time.monotonic() + 5
    while _runs(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(child)


def test_it_has_no_descriptor_variable_or_folder_of_its_parent(tmp_path, monkeypatch):
    code = """
fds = []
for fd in os.listdir("/proc/self/fd"):
    try:
        fds.append(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0])
    except OSError:  # the one that the folder was listed by
        pass
frame({"fds": fds, "env": dict(os.environ), "cwd": os.listdir("."), "tensors": []})
request()
"""
    (tmp_path / "a_fake_worker.py").write_text(FAKE + code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("WHERE_THE_DATA_IS", "/hospital")
    opened = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(opened, True)
    worker = Worker(program="a_fake_worker")
    try:
        told = worker.ask("mine", {}).head
    finally:
        os.close(opened)
        worker.close()
    assert told["fds"] == ["pipe"] * 3
    assert told["cwd"] == []
    assert "/hospital" not in told["env"].values()
    known = {"PATH", "LANG", "LANGUAGE", "TMPDIR", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONUTF8", "LD_LIBRARY_PATH"}
    assert not [n for n in told["env"] if n not in known and not n.startswith(("LC_", "OMP_", "MKL_", "CU", "KMP_"))]


def test_a_flood_of_lines_is_cut_and_control_characters_are_not_shown(tmp_path, monkeypatch, capfd):
    code = "sys.stderr.write('\\x1b[2Jred\\r\\n' * 300 + 'x' * 5000)\nframe({'tensors': []})\nrequest()"
    (tmp_path / "a_fake_worker.py").write_text(FAKE + code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker(program="a_fake_worker")
    worker.ask("mine", {})
    worker.close()
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "[mine]  [2Jred"
    assert len(lines) == 201
    assert lines[-1] == "[mine] prints more than 200 lines; the rest is not shown"


def test_no_process_is_said_to_be_needed_where_none_can_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(InputError, match=r"cannot start a process for your own attack .*--no-isolate"):
        Process("medpfl.isolation.worker")


def test_an_object_where_isolation_is_asked_for_says_what_to_do():
    from torch import nn

    class Mine(Attack):
        pass

    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    with pytest.raises(InputError, match=r"isolate: the model .* give it as file.py:Name .*--no-isolate"):
        audited(["DLG(steps=2)"], model=network, isolate=True)
    with pytest.raises(InputError, match=r"isolate: attack .* is an object whose code another process cannot find"):
        medpfl.audit(data=some_images(), attacks=[Mine()], run=Run(isolate=True))


@pytest.mark.slow
def test_an_audit_of_an_object_runs_in_its_own_process_and_says_so(bad):
    from torch import nn

    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    report = audited([f"{bad}:Bad"], model=network)
    assert [note for note in report.settings.notes if note.startswith("Your own attack ran in the audit's own pro")]
    assert report.settings.isolation["in a process of their own"] == []
    assert "directly" in report.settings.isolation["what it means"]


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
