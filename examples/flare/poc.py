"""Run the plain job in a real deployment on this machine: a server and two sites, on loopback only.

Each site has the privacy.json of this folder: the sites record, whatever job is submitted. The script provisions the
deployment with FLARE's own `nvflare poc prepare`, starts server and sites, submits the job, and stops exactly the
processes that it started. Records lie in OUT/updates/site-1 and OUT/updates/site-2.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
sys.path.insert(0, str(HERE.parent))

from make_pictures import write  # noqa: E402  (it lies in the folder above)
from processes import free_ports, notes, started, wait_for  # noqa: E402

SITES = ("site-1", "site-2")


def prepare(out: Path, environment: dict[str, str]) -> tuple[Path, int]:
    """Provision the deployment, and return its folder and the server's port."""
    words = [str(BIN / "nvflare"), "poc", "prepare", "-n", str(len(SITES))]
    subprocess.run(words, env=environment, cwd=out, check=True, timeout=120, stdout=subprocess.DEVNULL)
    place = out / "poc" / "example_project" / "prod_00"
    (port,) = free_ports(1)
    for path in place.glob("*/startup/fed_*.json"):
        # A server that is named localhost listens on loopback only; as provisioned it would listen everywhere.
        text = (
            path.read_text().replace("server:8002", f"localhost:{port}").replace("localhost:8002", f"localhost:{port}")
        )
        told = json.loads(
            text.replace('"admin_server": "server"', '"admin_server": "localhost"').replace("8002", str(port))
        )
        path.write_text(json.dumps(told, indent=2))
    for site in SITES:
        policy = (HERE / "privacy.json").read_text().replace('"updates/', f'"{out}/updates/')
        (place / site / "local" / "privacy.json").write_text(policy)
    return place, port


def submit(out: Path, place: Path, network: str, rounds: int) -> str | None:
    """Submit the job, wait for its end, and return its status."""
    os.chdir(out)
    sys.path.insert(0, str(out))
    from job import recipe_of
    from nvflare.recipe import ProdEnv

    kit = str(place / "admin@nvidia.com")
    recipe = recipe_of(out / "pictures", network, rounds, "FULL")
    run = recipe.execute(ProdEnv(startup_kit_location=kit, username="admin@nvidia.com", login_timeout=60))
    run.get_result(timeout=300)
    return run.get_status()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder for pictures, logs and records")
    parser.add_argument("--network", choices=("lenet", "relu_cnn", "norm_cnn"), default="norm_cnn")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    if given.out.exists():
        raise SystemExit(f"'{given.out}' exists: name a new folder")
    given.out.mkdir(parents=True)
    out = given.out.resolve()
    write(out / "pictures", per_class=6)
    for name in ("job.py", "client.py", "net.py"):
        shutil.copy(HERE / name, out)
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(out / "home"),  # FLARE keeps its own settings there
        "NVFLARE_POC_WORKSPACE": str(out / "poc"),
        "OMP_NUM_THREADS": "1",
    }
    (out / "home").mkdir()
    os.environ.update(environment)
    place, port = prepare(out, environment)
    with ExitStack() as running:
        for name in ("server", *SITES):
            running.enter_context(started(["bash", "startup/sub_start.sh", "--once"], place / name, environment))
            wait_for(port, 120)
        status = submit(out, place, given.network, given.rounds)
    print(f"status of the job: {status}")
    records = sorted(out.glob("updates/**/*.safetensors"))
    for path in records:
        print(path)
    for note in notes(out):
        print(note)
    if not records:
        print(f"nothing was recorded: read the logs in '{place}'")
    sys.exit(0 if str(status).endswith("COMPLETED") and records else 1)
