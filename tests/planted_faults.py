"""Faults that the suite must find: ``python tests/planted_faults.py`` plants them one by one in a copy.

For each it prints the first test that fails. The exit status is 1 if a fault is not found. `pytest` does not run it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Fault(NamedTuple):
    """A change to one line in a module, and the tests that should notice it.

    Attributes:
        what: description of the fault.
        module: the module's path under ``src/medpfl``.
        old, new: text that occurs in it once, and its replacement.
        tests: paths under ``tests``.
    """

    what: str
    module: str
    old: str
    new: str
    tests: str


FAULTS = [
    Fault(
        "SSIM with a narrow window",
        "metrics/pixel.py",
        "_WINDOW, _SIGMA = 11, 1.5",
        "_WINDOW, _SIGMA = 11, 1.0",
        "metrics",
    ),
    Fault("intervals of 90 %", "metrics/rates.py", "tail = (1 - confidence) / 2", "tail = 1 - confidence", "metrics"),
    Fault("no weight decay", "core/plan.py", "slope + self.weight_decay * weight", "slope", "federated"),
    Fault(
        "no momentum",
        "core/plan.py",
        "push if step == 0 else self.momentum * velocity + damped * push",
        "push",
        "federated",
    ),
    Fault(
        "no server momentum",
        "federated/training.py",
        "momentum * before.velocity.get",
        "0 * before.velocity.get",
        "federated training",
    ),
    Fault(
        "noise that ignores the clipping norm",
        "defenses/dpsgd.py",
        "clean + self.noise * self.clip * noise",
        "clean + self.noise * noise",
        "defenses",
    ),
    Fault(
        "bounds that are half as large",
        "defenses/topk.py",
        "torch.zeros_like(group), threshold)",
        "torch.zeros_like(group), threshold / 2)",
        "defenses",
    ),
    Fault(
        "a bound for twice the noise",
        "core/privacy/tradeoff.py",
        "noise, sampling_prob=rate",
        "2 * noise, sampling_prob=rate",
        "core/privacy",
    ),
    Fault("no correction for many tests", "judging/evidence.py", "alpha / (len(p_values) - place)", "alpha", "judging"),
    Fault(
        "the lower end in place of the upper",
        "judging/evidence.py",
        "interval(self.rate * updates, updates)[1]",
        "interval(self.rate * updates, updates)[0]",
        "judging",
    ),
    Fault(
        "a naive attack's failure counts",
        "judging/summary.py",
        'found.get("changes") is False else "naive-attack"',
        'found.get("changes") is False else None',
        "judging",
    ),
    Fault(
        "an attack that ignores the disclosure counts as adaptive",
        "judging/summary.py",
        "return bool(untold) and told == untold",
        "return False",
        "judging",
    ),
    Fault(
        "guesses compared as they are",
        "auditing/scoring.py",
        "self._nearest(guess.clamp(0, 1), own), own)",
        "self._nearest(guess, own), own)",
        "auditing/test_scoring.py",
    ),
    Fault(
        "the most probable label taken for the true one",
        "attacks/matching/labels.py",
        "rows.argmin(1, keepdim=True)",
        "rows.argmax(1, keepdim=True)",
        "attacks/matching/test_labels.py",
    ),
    Fault(
        "black and white swapped",
        "data/reading/dicom_pixels.py",
        "        gray = 1 - gray\n",
        "        gray = gray + 0\n",
        "data/test_dicom.py data/test_other_readers.py",
    ),
    Fault(
        "patients' images open to all",
        "runs/directory.py",
        "folder.chmod(0o700)",
        "folder.chmod(0o755)",
        "runs",
    ),
    Fault(
        "the whole environment in the attack's process",
        "isolation/process.py",
        "if k in _KEPT or k.startswith(_KEPT_STARTS)",
        "if k",
        "isolation/test_failures.py",
    ),
    Fault(
        "Pareto-optimal by leakage alone",
        "tradeoff/choice.py",
        "less >= 0 and more >= 0 and (less > 0 or more > 0)",
        "less > 0",
        "tradeoff/test_choice.py",
    ),
    Fault(
        "bad input ends with status 0",
        "cli/endings.py",
        '"status": BAD_INPUT})\n    return BAD_INPUT',
        '"status": BAD_INPUT})\n    return 0',
        "cli/test_commands.py",
    ),
    Fault(
        "a class that is frequent in a batch is counted too often",
        "attacks/label_counts/evidence.py",
        "counts * (total / counts.sum())",
        "counts * (total / counts.sum()) ** 2",
        "attacks/label_counts/test_counts.py",
    ),
    Fault(
        "images of a patient at several clients",
        "data/partition.py",
        "for i, patient in enumerate(data.patients)",
        "for i, patient in enumerate(data.names)",
        "data/test_partition.py",
    ),
]


def first_failure(fault: Fault, copy: Path) -> str | None:
    """Return the first test that fails under a fault, or ``None``."""
    path = copy / "src" / "medpfl" / fault.module
    text = path.read_text()
    assert text.count(fault.old) == 1, f"{fault.module}: {fault.old!r} stands in it {text.count(fault.old)} times"
    path.write_text(text.replace(fault.old, fault.new))
    places = [f"tests/{place}" for place in fault.tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *places]
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    path.write_text(text)
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return found[1] if done.returncode == 1 and found else None


def main() -> int:
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in ("src", "tests", "benchmarks", "docs", "examples", "website"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for page in ("pyproject.toml", "setup.py", "mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
            shutil.copy(ROOT / page, copy)
        for fault in FAULTS:
            found = first_failure(fault, copy)
            missed += found is None
            print(f"{fault.what}: {found or 'NOT FOUND'}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
