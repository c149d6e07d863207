"""Users' own attacks as files, and shared helpers for isolation tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medpfl import audit
from medpfl.auditing.report import Report
from medpfl.data.images import LabelledImages
from tests.flat import flat

HEAD = '''
from dataclasses import dataclass
import gc, os, sys
from pathlib import Path
import torch
from medpfl import Attack, InputError, Reconstruction
from medpfl.attacks import iDLG, GradInv

def gray(seen):
    return torch.full((len(seen), seen.num_images, *seen.image_shape), 0.5)

def answer(seen, guesses=None, **fields):
    count = torch.ones(len(seen), dtype=torch.long)
    made = dict(guesses=gray(seen) if guesses is None else guesses, labels=None, loss=torch.ones(len(seen)),
                steps=count, evaluations=count, ended=("converged",) * len(seen))
    return Reconstruction(**{**made, **fields})

def found(seen, batches):
    """The truth as the answer, if it was found."""
    own = [batch.images for batch in batches][: len(seen)]
    return answer(seen, torch.stack(own) if len(own) == len(seen) else None)
'''

HONEST = '''
@dataclass(frozen=True, repr=False)
class Honest(Attack):
    """An attack that does nothing but search."""
    steps: int = 3
    def check(self, model, plans, image_shape):
        if self.steps > 100:
            raise InputError("this takes too long")
    def suited(self, model):
        return (Honest(self.steps + 1),) if self.steps == 3 else ()
    def __call__(self, seen, generator):
        return GradInv(steps=self.steps, restarts=2)(seen, generator)
'''


def file_of(folder: Path, name: str, *code: str) -> Path:
    """Write a file with a user's attacks."""
    path = folder / f"{name}.py"
    path.write_text("\n".join((HEAD, *code)))
    return path


def some_images(count: int = 8) -> LabelledImages:
    """Return random images, 16 x 16, in two classes."""
    images = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    names = tuple(f"{i}.png" for i in range(count))
    return LabelledImages(images, torch.arange(count) % 2, ("a", "b"), names, (None,) * count)


def audited(attacks: Sequence[str], **options: Any) -> Report:
    """Run a small audit. With `out` directories in one folder, an image has the same index in all of them."""
    given = {"model": "LeNet('idlg')", "data": some_images(), "images": 2, "size": 16}
    return flat(audit, attacks=attacks, **{**given, **options})


def plain(report: Report) -> list[dict[str, Any]]:
    """Return all fields in all rows except the date and the seconds."""
    return [{k: v for k, v in row.to_dict().items() if k not in ("seconds", "date")} for row in report.rows]
