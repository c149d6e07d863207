"""The note on unstable local steps."""

from __future__ import annotations

import pytest

import medpfl
from tests.federation.federation_cases import MODEL, client, pixels


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "noted"), [(1.0, True), (0.01, False)])
def test_an_audit_notes_local_steps_that_enlarge_a_change(rate, noted):
    plan = medpfl.Plan("FedAvg", batch_size=1, local_images=2, epochs=2, learning_rate=rate, mode="eval")
    report = medpfl.audit(
        "LeNet('idlg')", "samples", attacks=["iDLG(steps=1)"], plan=plan, victims=medpfl.Victims(images=2)
    )
    notes = [note for note in report.settings.notes if "unstable" in note]
    assert len(notes) == noted
    assert all("at learning rate 1:" in note and "--learning-rate 0.1" in note for note in notes)


@pytest.mark.slow
def test_for_a_record_no_learning_rate_is_advised_since_its_plan_stands(tmp_path):
    made = client(tmp_path, 1, pixels(0, 4), batch=1, rate=30.0)
    report = medpfl.audit_record(made, made.parent / "private-truth" / made.name, MODEL, attacks=["iDLG(steps=1)"])
    (note,) = [note for note in report.settings.notes if "unstable" in note]
    assert "says nothing about lower learning rates." in note
    assert "--learning-rate" not in note
