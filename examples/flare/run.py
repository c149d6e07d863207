"""Run the job in FLARE's simulator, with the lines of job.diff added, and list the records.

Records go into OUT/updates: `client/site-1` and `client/site-2` are what the sites recorded, `server/site-1` and
`server/site-2` are what the server saw of each. FLARE's messages go into OUT/job.log. Further options go to job.py:
--network (lenet, relu_cnn or norm_cnn), --rounds, and --transfer (FULL or DIFF).
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
from processes import notes  # noqa: E402


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
    if given.out.exists():
        raise SystemExit(f"'{given.out}' exists: name a new folder")
    given.out.mkdir(parents=True)
    print(f"running; FLARE writes into {given.out / 'job.log'}", flush=True)
    status = run(given.out.resolve(), others)
    records = sorted(given.out.glob("updates/**/*.safetensors"))
    for path in records:
        print(path)
    for note in notes(given.out):
        print(note)
    if status or not records:
        print(f"the job failed, or nothing was recorded: read {given.out / 'job.log'}")
    sys.exit(status or int(not records))
