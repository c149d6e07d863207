"""Facts besides the files that decide the check of a record: the person's model, defenses and attacks, and versions."""

from __future__ import annotations

import json

from torch import nn

from medpfl.auditing.records.run import RecordOptions
from medpfl.inputs.parts import defenses_given, model_of
from medpfl.runs.environment import versions
from medpfl.runs.identity import Code, layers_of
from medpfl.runs.study_key import Key

__all__ = ["basis_of"]


def basis_of(case: RecordOptions, key: Key) -> str:
    """Return a text that changes with everything on which a check depends besides the files; it may hold paths."""
    code = Code.of(lambda: [model_of(case.model), *(one.part for one in defenses_given(case.defenses))])
    network = isinstance(case.model, nn.Module)
    texts = [layers_of(case.model) if network else str(case.model)]  # type: ignore[arg-type]
    texts += [one if isinstance(one, str) else repr(one) for one in (*code.parts, *case.attacks)]
    texts += [repr(getattr(code.parts[0], "about", None)), repr(case.threat), repr(case.reading), case.run.device]
    return json.dumps([texts, versions(), code.entry(key)], sort_keys=True)
