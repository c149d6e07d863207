"""Run the app as a real deployment on this machine: one SuperLink and two SuperNodes, on loopback only.

The script starts them, runs the app, waits for its end, and stops exactly the processes that it started. Each SuperNode
runs in its own folder, so that its records lie in OUT/site-1/updates and OUT/site-2/updates.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from make_pictures import write  # noqa: E402  (it lies in the folder above)
from patched import patched  # noqa: E402
from processes import free_ports, notes, started, wait_for  # noqa: E402

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


def run(out: Path, settings: str, per_class: int, diffs: list[str], site_command: Path | None) -> str:
    """Run the app once, and return the status that Flower states."""
    copy_app(out / "project", diffs)
    write(out / "pictures", per_class)
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
    parser.add_argument("--epochs", type=int, default=2, help="local epochs (default: 2)")
    parser.add_argument("--per-class", type=int, default=6, help="pictures of each class at each site (default: 6)")
    parser.add_argument("--plain", action="store_true", help="run the app as it is, without the added lines")
    parser.add_argument(
        "--site", action="store_true", help="the site records: its flwr-clientapp, and the plain client"
    )
    given = parser.parse_args()
    if given.out.exists():
        raise SystemExit(f"'{given.out}' exists: name a new folder")
    chosen = [] if given.plain else ["server.diff"] if given.site else ["client.diff", "server.diff"]
    place = HERE / "site" if given.site else None
    settings = f'network="{given.network}" num-server-rounds={given.rounds} local-epochs={given.epochs}'
    status = run(given.out.resolve(), settings, given.per_class, chosen, place)
    print(f"status of the run: {status}")
    records = sorted(given.out.rglob("*.safetensors"))
    for path in records:
        print(path)
    for note in notes(given.out):
        print(note)
    if chosen and not records:
        # A run counts as completed even if no site answered.
        print(f"nothing was recorded: read the logs in '{given.out}/site-1' and '{given.out}/server'")
    sys.exit(0 if status == "finished:completed" and (records or not chosen) else 1)
