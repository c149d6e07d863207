"""Run the app as a real deployment on this machine: one SuperLink and two SuperNodes, on loopback only.

The script starts them, runs the app, waits for its end, and stops exactly the processes that it started. Each SuperNode
runs in its own folder, so that its records lie in OUT/site-1/updates and OUT/site-2/updates.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from make_pictures import write  # noqa: E402  (it lies in the folder above)
from patched import patched  # noqa: E402

BIN = Path(sys.executable).parent
SITES = 2


def copy_app(folder: Path, diffs: list[str]) -> None:
    """Copy the plain app, with the lines of the diffs added."""
    shutil.copytree(HERE / "app", folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "pyproject.toml", folder)
    for name in diffs:
        diff = (HERE / name).read_text()
        path = folder / diff.split("\n")[0].removeprefix("--- ")
        path.write_text(patched(path.read_text(), diff))


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that are free now."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@contextmanager
def started(words: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Start a command in a session of its own, and stop that session at the end: the command and what it started."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{Path(words[0]).name}.log").open("w") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, sign)
                    process.wait(20)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
            process.wait()


def wait_for(port: int, seconds: float = 60) -> None:
    """Wait until a server listens on a port of the loopback interface."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    raise SystemExit(f"nothing listens on port {port} after {seconds:.0f} s: read the logs")


def run(out: Path, network: str, rounds: int, diffs: list[str], site_command: Path | None) -> str:
    """Run the app once, and return the status that Flower states."""
    copy_app(out / "project", diffs)
    write(out / "pictures", per_class=6)
    link, *nodes = free_ports(1 + SITES)
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(out / "flower-home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
    }
    (out / "flower-home").mkdir()
    (out / "flower-home" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    at_site = environment | (
        {"PATH": f"{site_command}{os.pathsep}{environment['PATH']}"} if site_command is not None else {}
    )
    server = [str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(link)]
    with started(server, out / "server", environment):
        wait_for(link)

        def node(site: int) -> list[str]:
            pictures = out / "pictures" / f"site-{site + 1}"
            return [
                str(BIN / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{link}",
                "--host", "127.0.0.1", "--port", str(nodes[site]), "--node-config", f'pictures="{pictures}"',
            ]  # fmt: skip

        with started(node(0), out / "site-1", at_site), started(node(1), out / "site-2", at_site):
            settings = f'network="{network}" num-server-rounds={rounds}'
            words = [str(BIN / "flwr"), "run", str(out / "project"), "here", "--stream", "--run-config", settings]
            subprocess.run(words, env=environment, cwd=out, timeout=400, check=False)
            told = subprocess.run(
                [str(BIN / "flwr"), "list", "here", "--format", "json"],
                env=environment, cwd=out, capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
    # `flwr run` exits with 0 even when the app failed: only the list of runs tells.
    return str(json.loads(told.stdout)["runs"][0]["status"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder for pictures, logs and records")
    parser.add_argument("--network", choices=("lenet", "relu_cnn", "norm_cnn"), default="norm_cnn")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="run the app as it is, without the added lines")
    parser.add_argument(
        "--site", action="store_true", help="the site records: its flwr-clientapp, and the plain client"
    )
    given = parser.parse_args()
    if given.out.exists():
        raise SystemExit(f"'{given.out}' exists: name a new folder")
    chosen = [] if given.plain else ["server.diff"] if given.site else ["client.diff", "server.diff"]
    place = HERE / "site" if given.site else None
    status = run(given.out.resolve(), given.network, given.rounds, chosen, place)
    print(f"status of the run: {status}")
    for path in sorted(given.out.rglob("*.safetensors")):
        print(path)
    sys.exit(0 if status == "finished:completed" else 1)
