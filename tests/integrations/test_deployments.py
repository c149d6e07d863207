"""The example federations as real programs: records are right, and the server's equal the sites' in every byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medpfl.cli import main
from medpfl.core.records.record import Record
from tests.integrations import flower_apps as apps

pytestmark = [pytest.mark.extra, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples"


def ran(*words: str | int | Path) -> str:
    """Run a program of the examples, and return what it prints."""
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def content(path: Path) -> dict[str, bytes]:
    """Return the bytes of everything in a record's update, by name."""
    update = Record.load(path).update
    return {name: t.numpy().tobytes() for name, t in {**update.tensors, **(update.buffers or {})}.items()}


def inspected(record: Path, model: str, capsys: pytest.CaptureFixture[str]) -> str:
    words = ["inspect", str(record), "--truth", str(record.parent / "private-truth" / record.name), "--model", model]
    assert main(words) == 0
    return capsys.readouterr().out


def test_a_flower_deployment(tmp_path, capsys):
    out = tmp_path / "out"
    shown = ran(EXAMPLES / "flower" / "deploy.py", out)
    assert "finished:completed" in shown
    told = ran(EXAMPLES / "flower" / "compare.py", out)
    records = sorted(out.glob("site-*/updates/*.safetensors"))
    assert len(records) == 4, "two sites, two rounds"
    assert told.count(" = server/updates/") == 4
    for record in records:
        assert "This record is right." in inspected(record, f"{EXAMPLES}/flower/app/task.py:norm_cnn", capsys)


def test_flowers_simulation_has_a_site_for_each_client(tmp_path, capsys, monkeypatch):
    """Two of Ray's processes train four clients in turn, at the same time; each client's records stay its own."""
    apps.telemetry_off(monkeypatch)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ran("-m", "tests.integrations.flower_simulation", tmp_path, 4)
    sites = sorted(path.name for path in (tmp_path / "clients").iterdir())
    assert sites == [f"site-{i}" for i in range(4)]
    server = [content(path) for path in tmp_path.glob("server/*/*.safetensors")]
    for site in sites:
        records = sorted((tmp_path / "clients" / site).glob("*.safetensors"))
        assert [path.name[:10] for path in records] == ["round-0001", "round-0002"]
        for record in records:
            assert server.count(content(record)) == 1
            assert "This record is right." in inspected(record, f"{apps.__file__}:make_model", capsys)


def test_flares_simulator(tmp_path, capsys):
    out = tmp_path / "out"
    ran(EXAMPLES / "flare" / "run.py", out)
    records = sorted(out.glob("updates/client/site-*/*.safetensors"))
    assert len(records) == 4, "two sites, two rounds"
    server = [content(path) for path in sorted(out.glob("updates/server/site-*/*.safetensors"))]
    assert len(server) == 4
    for record in records:
        assert server.count(content(record)) == 1
        assert "This record is right." in inspected(record, f"{EXAMPLES}/flare/net.py:Net", capsys)
