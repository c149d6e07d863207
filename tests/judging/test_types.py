"""The verdict's types, and their form in files."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from medpfl.judging.types import (
    SCHEMA,
    Bound,
    Cell,
    Exposure,
    Mark,
    MaskScores,
    Patients,
    Rate,
    StatedMechanism,
    Union,
    flat,
)

PAGE = Path(__file__).parents[2] / "docs" / "summary.md"
MARK = Mark(kappa=0.1, kappa_high=0.2, bound=0.3, bound_high=0.4)
PATIENT = Exposure(patient="p-1", images=2, guesses=2, read_back=1, identified=0, ssim=0.5)
FULL = Cell(
    attack="iDLG()",
    defense="DPSGD()",
    asr=Rate(0.5, 0.2, 0.8),
    masks=MaskScores(dice=Rate(0.5), iou=0.4, dice_majority=0.3, dice_random_update=0.2, granted=False),
    by_patient=Patients(
        patients=1, images=2, without_patient=0, read_back=Rate(1.0), identified=Rate(), chance=None, worst=(PATIENT,)
    ),
    bound=Bound(
        rounds=1, gap=None, curve=[[0.0, 0.0]],
        mechanisms=(StatedMechanism(unit="image", noise=1.0, rate=0.5, steps=2),),
        no_prior={"asr": 0.0, "identified": None}, asr=MARK, identified=Mark(), guesses={"chance": 0.1},
    ),
)  # fmt: skip


def test_a_rate_is_three_keys():
    told = FULL.to_dict()
    assert (told["asr"], told["asr_low"], told["asr_high"]) == (0.5, 0.2, 0.8)
    assert (told["schema"], told["masks"]["dice_low"], told["by_patient"]["worst"][0]["patient"]) == (1, None, "p-1")
    assert told["union"] == flat(Union())


def test_a_bound_is_left_out_where_there_is_none_and_in_it_what_is_not_stated():
    assert "bound" not in Cell(attack="a", defense="d").to_dict()
    told = FULL.to_dict()["bound"]
    assert told["identified"] == {"kappa": None, "kappa_high": None, "bound": None, "bound_high": None}
    assert list(flat(Bound(rounds=1, gap="no accountant", curve=[]))) == ["rounds", "gap", "curve"]


def test_a_cell_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.verdict = "leaks"  # type: ignore[misc]  (what the test is about)


def names(told: object) -> set[str]:
    """Return all object keys in a JSON value; an interval's ends belong to their rate."""
    if isinstance(told, list):
        return set().union(*map(names, told)) if told else set()
    if not isinstance(told, dict):
        return set()
    own = {re.sub(r"_(low|high)$", "", key) for key in told if key not in ("kappa_high", "bound_high")}
    return own.union(*map(names, told.values()))


def test_every_key_is_documented_and_none_that_does_not_exist():
    text = PAGE.read_text()
    assert f"version of the format, {SCHEMA}." in text
    documented = {word for line in text.splitlines() if line.startswith("| `") for word in re.findall(r"`(\w+)`", line)}
    known = names(FULL.to_dict()) | {"kappa_high", "bound_high", "null", "read", "recognized", "leaks", "inconclusive"}
    assert names(FULL.to_dict()) <= documented
    assert documented <= known
