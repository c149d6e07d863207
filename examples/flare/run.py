"""Run the job in FLARE's simulator, with the lines of job.diff added, and list the records.

Records go into OUT/updates: `client/site-1` and `client/site-2` are what the sites recorded, `server/site-1` and
`server/site-2` are what the server saw of each. Further options go to job.py.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from make_pictures import write  # noqa: E402  (it lies in the folder above)
from patched import patched  # noqa: E402


def run(out: Path, words: list[str]) -> int:
    """Run the job, and return its exit status."""
    write(out / "pictures", per_class=6)
    for name in ("client.py", "net.py"):
        shutil.copy(HERE / name, out)
    (out / "job.py").write_text(patched((HERE / "job.py").read_text(), (HERE / "job.diff").read_text()))
    command = [sys.executable, "job.py", "pictures", "workspace", *words]
    with (out / "job.log").open("w") as log:
        return subprocess.run(
            command,
            cwd=out,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
        ).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder for pictures, logs and records")
    given, others = parser.parse_known_args()
    given.out.mkdir(parents=True)
    status = run(given.out.resolve(), others)
    for path in sorted(given.out.glob("updates/**/*.safetensors")):
        print(path)
    sys.exit(status)
