"""Records: saved data comes back, damaged or unsuitable data is reported, and nothing is pickled."""

from __future__ import annotations

import json
import os
import pickle
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.records.record import FORMAT, Record
from medpfl.core.types import Update, Weights

BESIDE = ("buffers", "num_samples")


def example(**changes) -> Record:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(3, 2).double())
    network[0].bias.requires_grad_(False)
    weights = Weights.of(network)
    update = Update(
        {k: torch.randn_like(t) for k, t in weights.parameters.items()},
        "difference",
        {k: t + 1 for k, t in weights.buffers.items()},
        6,
    )
    plan = Plan("FedAvg", 2, 6, epochs=3, learning_rate=0.3, momentum=0.5, weight_decay=1e-4, mode="eval")
    return replace(
        Record(update, plan, weights, (1, 8, 9), ("benign", "malignant"), "LaplaceNoise(scale=0.01)"), **changes
    )


def saved(tmp_path: Path, record: Record | None = None) -> Path:
    (record or example()).save(tmp_path / "update.safetensors")
    return tmp_path / "update.safetensors"


def same(one, other) -> bool:
    return list(one) == list(other) and all(
        torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one
    )


def test_all_of_a_record_comes_back(tmp_path):
    before = example()
    after = Record.load(saved(tmp_path, before))
    for one, other in (
        (before.update.tensors, after.update.tensors),
        (before.update.buffers, after.update.buffers),
        (before.weights.parameters, after.weights.parameters),
        (before.weights.buffers, after.weights.buffers),
    ):
        assert same(dict(sorted(one.items())), dict(sorted(other.items())))
    assert after.weights.buffers["1.num_batches_tracked"].dtype == torch.int64
    assert after.update.tensors["2.weight"].dtype == torch.float64
    assert (after.update.kind, after.update.num_samples) == ("difference", 6)
    assert (after.plan, after.image_shape, after.classes) == (before.plan, (1, 8, 9), ("benign", "malignant"))
    assert (after.defense, after.misfits()) == ("LaplaceNoise(scale=0.01)", [])


def test_what_was_not_sent_is_not_there(tmp_path):
    record = example(image_shape=None, classes=None)
    silent = replace(record, update=replace(record.update, buffers=None, num_samples=None))
    after = Record.load(saved(tmp_path, silent))
    assert after.update.buffers is None
    assert (after.update.num_samples, after.image_shape, after.classes) == (None, None, None)
    nothing = replace(record, update=replace(record.update, buffers={}))
    assert Record.load(saved(tmp_path, nothing)).update.buffers == {}


def test_views_and_shared_tensors_can_be_saved(tmp_path):
    record = example()
    one = torch.randn(4, 6)
    tensors = dict.fromkeys(record.update.tensors, one.t()) | {"half": one[:, ::2].requires_grad_()}
    after = Record.load(saved(tmp_path, replace(record, update=record.update.replace(tensors))))
    assert all(torch.equal(after.update.tensors[k], t) for k, t in tensors.items())


def test_the_file_is_safetensors_and_json_and_holds_no_path(tmp_path):
    """Read by hand, as the format defines: a length, JSON, and raw numbers."""
    record = example()
    content = saved(tmp_path, record).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    about = json.loads(header.pop("__metadata__")[FORMAT])
    assert about["steps"]["runs"][0][0] == 9
    assert about["steps"]["runs"][0][1]["settings"]["lr"] == 0.3
    entry = header["update/0.weight"]
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    numbers = np.frombuffer(content[begin:end], np.float32).reshape(entry["shape"])
    assert (numbers == record.update.tensors["0.weight"].numpy()).all()
    assert {name.partition("/")[0] for name in header} == {"update", "sent_buffer", "parameter", "buffer"}
    assert str(tmp_path).encode() not in content
    assert sum(t["data_offsets"][1] - t["data_offsets"][0] for t in header.values()) == len(content) - 8 - length


def test_is_one(tmp_path):
    assert Record.is_one(saved(tmp_path))
    other = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    short = tmp_path / "short"
    short.write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe")  # to open it would block
    for path in (other, short, tmp_path, tmp_path / "none", tmp_path / "pipe"):
        assert not Record.is_one(path)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "update.pt"
    path.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(InputError, match="cannot be read as a record"):
        Record.load(path)
    torch.save({"update": Evil(mark)}, path)
    with pytest.raises(InputError, match="cannot be read as a record"):
        Record.load(path)
    assert not mark.exists()


def test_no_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InputError, match="cannot be read as a record"):
            Record.load(path)


def test_other_safetensors_are_no_record(tmp_path):
    path = tmp_path / "weights.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"x": torch.zeros(2)}, path, metadata)
        with pytest.raises(
            InputError, match=r"not a record: make one with medpfl.record or medpfl.Record\(...\).save\(path\)"
        ):
            Record.load(path)


def about(**changes) -> dict:
    plan = {"algorithm": "FedSGD", "batch_size": 1}
    whole = {"format": FORMAT, "version": 1, "kind": "gradient", "num_samples": 1, "sends_buffers": False}
    return whole | {"plan": plan, "image_shape": None, "classes": None} | changes


def written(path: Path, header: str, name: str = "update/x") -> Path:
    save_file({name: torch.zeros(2)}, path, {FORMAT: header})
    return path


def without(key: str) -> str:
    return json.dumps({k: v for k, v in about().items() if k != key})


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "header of .* is damaged"),
        ("[]", "header of .* is damaged"),
        ("3", "header of .* is damaged"),
        (json.dumps(about(format="other")), "header of .* is damaged"),
        (without("format"), "header of .* is damaged"),
        (json.dumps(about(version=3)), "record of version 3, this MedPFL reads versions 1 to 2"),
        (json.dumps(about(version=True)), "record of version True"),
        (json.dumps(about(version=2)), "not valid: steps is None"),
        (without("version"), "record of version None"),
        (without("plan"), "not valid: 'plan'"),
        (without("num_samples"), "not valid: 'num_samples'"),
        (json.dumps(about(plan=5)), "not valid"),
        (json.dumps(about(plan={"speed": 1})), "not valid: .*speed"),
        (json.dumps(about(plan={"batch_size": 0})), "not valid: batch_size is 0"),
        (json.dumps(about(plan={"sends": 5})), "not valid"),
        (json.dumps(about(image_shape=5)), "not valid"),
        (json.dumps(about(defense=5)), "not valid: defense is 5: it must be a spec or null"),
    ],
)
def test_wrong_headers(tmp_path, header, message):
    with pytest.raises(InputError, match=message):
        Record.load(written(tmp_path / "x", header))


@pytest.mark.parametrize("name", ["x", "update/", "images/x", "/x"])
def test_tensors_that_no_record_has(tmp_path, name):
    with pytest.raises(InputError, match=f"contains a tensor '{name}' that does not belong in a record"):
        Record.load(written(tmp_path / "x", json.dumps(about()), name))


def test_an_unchanged_header_is_read(tmp_path):
    assert Record.load(written(tmp_path / "x", json.dumps(about()))).update.tensors["x"].shape == (2,)


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("record"))


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(intact, share):
    content = intact.read_bytes()
    cut = intact.with_name("cut")
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError):
        Record.load(cut)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_refused_or_read(intact, changes):
    content = bytearray(intact.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    for share, value in changes:
        content[int(share * (8 + length))] = value
    damaged = intact.with_name("damaged")
    damaged.write_bytes(content)
    with suppress(InputError):
        Record.load(damaged).misfits()


def changed(group: str, **tensors) -> Record:
    record = example()
    if group == "update":
        return replace(record, update=record.update.replace({**record.update.tensors, **tensors}))
    return replace(record, weights=Weights({**record.weights.parameters, **tensors}, record.weights.buffers))


def test_misfits_of_names():
    extra = changed("update", extra=torch.zeros(1))
    assert extra.misfits() == ["extra: an update without a parameter"]
    missing = changed("parameter", extra=torch.zeros(1))
    assert missing.misfits() == ["extra: a parameter without an update"]


def test_misfits_of_shapes_and_dtypes():
    name = "0.weight"
    assert changed("update", **{name: torch.zeros(2, 1, 9)}).misfits() == [
        "0.weight: update (2, 1, 9), parameter (2, 1, 3, 3)"
    ]
    assert changed("update", **{name: torch.zeros(2, 1, 3, 3).int()}).misfits() == [
        "0.weight: update torch.int32, parameter torch.float32"
    ]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert changed("update", **{name: torch.zeros(2, 1, 3, 3).to(dtype)}).misfits() == []


def with_buffers(**tensors) -> Record:
    record = example()
    return replace(record, update=replace(record.update, buffers={**record.update.buffers, **tensors}))


@pytest.mark.parametrize(
    ("tensor", "misfit"),
    [
        (torch.zeros(3), "sent buffer (3,), buffer (2,)"),
        (torch.zeros(2).int(), "sent buffer torch.int32, buffer torch.float32"),
        (torch.tensor([0.0, torch.nan]), "sent buffer with values that are not finite"),
    ],
)
def test_misfits_of_sent_buffers(tensor, misfit):
    assert with_buffers(**{"1.running_mean": tensor}).misfits() == [f"1.running_mean: {misfit}"]
    assert with_buffers(extra=tensor.nan_to_num()).misfits() == ["extra: a sent buffer that the model does not have"]


def test_misfits_of_what_the_plan_does_not_send():
    record = example()
    silent = replace(record, plan=replace(record.plan, sends=()))
    assert silent.misfits() == [f"the update contains {w}, but the plan does not send them" for w in BESIDE]
    assert replace(silent, update=replace(silent.update, buffers=None, num_samples=None)).misfits() == []


@pytest.mark.parametrize("group", ["update", "parameter"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_misfits_of_values(group, value):
    bad = torch.zeros(2, 1, 3, 3)
    bad[1, 0, 2, 2] = value
    assert changed(group, **{"0.weight": bad}).misfits() == [f"0.weight: {group} with values that are not finite"]


def test_misfits_of_kind_and_count():
    record = example()
    gradient = replace(record, update=replace(record.update, kind="gradient", num_samples=5))
    assert gradient.misfits() == [
        "num_samples is 5, but the plan is for 6 images",
        "the update is a gradient, but a FedAvg plan sends a difference: save Update(tensors, kind='difference')",
    ]
    assert replace(gradient, plan=Plan(batch_size=5)).misfits() == []
    assert replace(record, update=replace(record.update, num_samples=None)).misfits() == []
