"""Processes for tests that kill one. They begin with all that this one has imported: no test waits for torch again."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

__all__ = ["start"]


def start(code: str, *words: str | Path) -> BaseProcess:
    """Start a program in a process of its own, as ``python -c code words`` would, and return the process."""
    method = "spawn" if torch.cuda.is_available() else "fork"  # CUDA does not outlive a fork
    process = multiprocessing.get_context(method).Process(target=_run, args=(code, [str(word) for word in words]))
    process.start()
    return process


def _run(code: str, words: list[str]) -> None:
    torch.set_num_threads(1)
    sys.argv = ["-c", *words]
    exec(compile(code, "<a process of its own>", "exec"), {"__name__": "__main__"})
