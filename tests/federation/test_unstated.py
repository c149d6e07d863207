"""Records of a server that stated no plan: the message says where to state it, and names rounds."""

from __future__ import annotations

import dataclasses

import pytest

import medpfl
from medpfl.core.records.steps import Steps
from tests.federation.federation_cases import client, look, pixels


def test_a_server_without_a_plan_is_told_where_to_state_it(tmp_path):
    plans = {}
    for number in (1, 2):
        path = client(tmp_path / "clients/site-1", number, pixels(0))
        own = medpfl.Record.load(path)
        place = tmp_path / f"server/site-1/round-{number:04d}-0000000a.safetensors"
        place.parent.mkdir(parents=True, exist_ok=True)
        update = dataclasses.replace(own.update, num_samples=None)
        dataclasses.replace(own, plan=Steps.unknown(None), update=update).save(place)
        plans[place] = own.plan
    truth = tmp_path / "clients"
    with pytest.raises(
        medpfl.InputError, match=r"plan= to the component that records it .* Recorder of NVIDIA"
    ) as told:
        look(tmp_path / "server", truth=truth)
    assert "site-1, round 1 (" in str(told.value)
    assert "site-1, round 2 (" in str(told.value)
    for place, plan in plans.items():  # as docs/federation.md shows
        record = medpfl.Record.load(place)
        update = dataclasses.replace(record.update, num_samples=1)
        dataclasses.replace(record, plan=plan, update=update).save(place)
    assert len(look(tmp_path / "server", truth=truth).records) == 2


def test_what_differs_between_records_is_no_shared_setting(tmp_path):
    """Each site's images enter the model in their own range, and each round has other weights."""
    for place, site in enumerate(("site-1", "site-2")):
        client(tmp_path / site, 1 + place, pixels(place) * (3 + place))
    settings = look(tmp_path, attacks=("iDLG(steps=1)",)).settings
    assert [spec.endswith("(inferred from the images' values)") for spec in settings.experiment["model"]] == [
        True,
        True,
    ]
    assert "weights" not in settings.model
    assert "outputs" in settings.model
