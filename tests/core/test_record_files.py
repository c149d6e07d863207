"""Records and truth files of another's making: each is refused with an `InputError`, or read; no code runs."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.records.origin import Pixels, Source
from medpfl.core.records.record import FORMAT, Record
from medpfl.core.records.steps import Step, Steps
from medpfl.core.records.truth import TRUTH, Truth
from medpfl.core.types import Update, Weights

STEPS = Steps((Step(4, settings={"lr": 0.1}, modes={"1": True}),) * 3 + (Step(2, settings={"lr": 0.1}),), images=14)


def example() -> Record:
    weights = Weights({"fc.weight": torch.ones(2, 3)}, {"1.num_batches_tracked": torch.tensor(3)})
    update = Update({"fc.weight": torch.ones(2, 3)}, "difference", {"1.num_batches_tracked": torch.tensor(7.0)}, 14)
    source = Source("Flower", {"flwr": "1.42.0"}, 3, "server")
    return Record(update, STEPS, weights, (1, 8, 8), ("a", "b"), None, ("Clip(1.0)",), source, Pixels(-1, 1))


def parts(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(path: Path, header, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.fixture
def saved(tmp_path) -> Path:
    example().save(tmp_path / "record")
    return tmp_path / "record"


def edited(path: Path, **changes) -> Path:
    """Rewrite the record's own JSON object."""
    header, data = parts(path)
    about = {**json.loads(header["__metadata__"][FORMAT]), **changes}
    header["__metadata__"][FORMAT] = json.dumps(about)
    return put(path, header, data)


def test_everything_comes_back(saved):
    record, found = example(), Record.load(saved)
    assert found.plan == record.plan
    assert (found.filters, found.source, found.pixels) == (record.filters, record.source, record.pixels)
    assert found.misfits() == []
    cast = found.cast({"1.num_batches_tracked": torch.int64})
    assert cast.update.buffers["1.num_batches_tracked"].dtype == torch.int64


def test_a_record_of_version_1_is_read(saved):
    plan = {"algorithm": "FedAvg", "batch_size": 2, "local_images": 14, "learning_rate": 0.3}
    found = Record.load(edited(saved, version=1, plan=plan, steps=None, filters=None, source=None, pixels=None))
    assert found.plan == Plan("FedAvg", 2, 14, learning_rate=0.3)
    assert (found.source, found.filters) == (None, ())


def step(**changes):
    return {"steps": {"runs": [[1, {"images": 2, **changes}]]}}


BAD = {
    "version": {"version": 99},
    "no version": {"version": None},
    "steps": {"steps": 5},
    "no steps": {"steps": {"runs": []}},
    "many steps": {"steps": {"runs": [[10**9, {"images": 1}]]}},
    "many runs": {"steps": {"runs": [[10**6, {"images": 1}]] * 3}},
    "negative": {"steps": {"runs": [[-1, {"images": 1}]]}},
    "huge batch": step(images=10**12),
    "half an image": step(images=0.5),
    "unknown entry": step(speed=1),
    "settings": step(settings=[1]),
    "setting of code": step(settings={"__class__.x": 1}),
    "nested setting": step(settings={"lr": {"a": 1}}),
    "endless number": step(settings={"lr": 10**400}),
    "modes": step(modes={"1": "train"}),
    "training": step(training=1),
    "loss": step(loss=5),
    "sampling": {"steps": {"runs": [[1, {"images": 2}]], "sampling": "all"}},
    "sends": {"steps": {"runs": [[1, {"images": 2}]], "sends": ["images"]}},
    "images": {"steps": {"runs": [[1, {"images": 2}]], "images": 0}},
    "num_samples": {"num_samples": -1},
    "shape": {"image_shape": [1, 10**9, 10**9]},
    "classes": {"classes": ["x" * 10**5]},
    "filters": {"filters": "Clip"},
    "many filters": {"filters": ["x"] * 1000},
    "source": {"source": {"site": "St. Elsewhere"}},
    "round": {"source": {"framework": "x", "round": -1}},
    "place": {"source": {"place": "../x"}},
    "pixels": {"pixels": {"low": 1, "high": 0}},
    "mean": {"pixels": {"mean": [0.5], "std": [0]}},
    "one of two": {"pixels": {"mean": [0.5]}},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_headers_that_are_refused(saved, changes):
    with pytest.raises(InputError, match=r"is not valid|record of version|contains a tensor"):
        Record.load(edited(saved, **changes))


NAMES = ["update/../../etc/passwd", "update/a/b", "../update/x", "update/..", "update/a..b", "update/\n", "x" * 2000]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_refused(saved, name):
    header, data = parts(saved)
    header[name] = header.pop("update/fc.weight")
    with pytest.raises(InputError, match=r"does not belong in a record|a tensor's name is"):
        Record.load(put(saved, header, data))


def test_claims_of_sizes_are_refused_before_memory_is_taken(saved):
    header, data = parts(saved)
    for claim in (
        {"shape": [10**10], "data_offsets": [0, 4 * 10**10]},
        {"shape": [10**10]},
        {"shape": [2**62, 4]},
        {"shape": [0, 10**18]},
        {"shape": [-1, -6]},
        {"shape": [2.0, 3]},
        {"data_offsets": [24, 0]},
        {"dtype": "F1"},
        {"dtype": ["F32"]},
    ):
        changed = {**header, "update/fc.weight": {**header["update/fc.weight"], **claim}}
        with pytest.raises(InputError, match="cannot be read as a record"):
            Record.load(put(saved, changed, data))
    saved.write_bytes(struct.pack("<Q", 10 * 2**30) + b"{}")
    with pytest.raises(InputError, match="its header is longer than the file"):
        Record.load(saved)


def test_a_record_and_a_truth_file_are_told_apart(saved, tmp_path):
    truth = Truth(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
    kept = truth.save(tmp_path, saved.name)
    with pytest.raises(InputError, match="is a truth file, not a record: give the record first"):
        Record.load(kept)
    with pytest.raises(InputError, match="is a record, not a truth file: give the record first"):
        Truth.load(saved)


def test_json_that_is_refused(saved):
    header, data = parts(saved)
    text = json.dumps(header).encode()
    deep = b'{"a":' * 100_000
    for wrong in (
        text[:-1],
        b"[]",
        b"\xff" * 9,
        deep,
        text.replace(b"[2, 3]", b"[NaN, 3]"),
        text[:-1] + b',"a":1,"a":2}',
    ):
        with pytest.raises(InputError, match="cannot be read as a record"):
            Record.load(put(saved, wrong, data))
    about = header["__metadata__"][FORMAT]
    for wrong in (about.replace("14", "NaN", 1), about.replace("0.1", "Infinity"), "[" * 100_000, about[:-1]):
        header["__metadata__"][FORMAT] = wrong
        with pytest.raises(InputError, match=r"header of .* is damaged"):
            Record.load(put(saved, header, data))


def test_values_that_are_not_finite_are_named(saved):
    record = example()
    record.weights.parameters["fc.weight"][0, 0] = torch.nan
    record.save(saved)
    assert Record.load(saved).misfits() == ["fc.weight: parameter with values that are not finite"]


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> dict[str, bytes]:
    place = tmp_path_factory.mktemp("files")
    example().save(place / "record")
    kept = Truth(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])).save(place, "t")
    return {"record": (place / "record").read_bytes(), "truth": kept.read_bytes(), "at": str(place).encode()}


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["record", "truth"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.none() | st.floats(0, 1, exclude_max=True),
)
def test_flipped_and_truncated_files_are_refused_or_read(contents, kind, changes, cut):
    content = bytearray(contents[kind])
    (length,) = struct.unpack("<Q", content[:8])
    for share, value in changes:
        content[int(share * (8 + length))] = value
    if cut is not None:
        del content[int(cut * len(content)) :]
    path = Path(contents["at"].decode()) / "damaged"
    path.write_bytes(content)
    with suppress(InputError):
        Record.load(path).misfits() if kind == "record" else Truth.load(path)


# --- truth files ----------------------------------------------------------------------------------------------


def test_a_truth_comes_back_and_is_private(tmp_path):
    truth = Truth(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1, 1]), days=3, record="x")
    path = truth.save(tmp_path, "t.safetensors")
    found = Truth.load(path)
    assert torch.equal(found.images, truth.images)
    assert (found.order.tolist(), found.days, found.record, found.overdue) == ([2, 0, 1, 1], 3, "x", False)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not Record.is_one(path)


TRUTHS = {
    "shape": {"images": torch.rand(3, 4)},
    "integers": {"images": torch.ones(3, 1, 4, 4, dtype=torch.uint8)},
    "NaN": {"images": torch.full((3, 1, 4, 4), torch.nan)},
    "labels": {"labels": torch.tensor([1])},
    "order": {"order": torch.tensor([0, 3])},
    "negative order": {"order": torch.tensor([-1])},
    "empty order": {"order": torch.zeros(0, dtype=torch.long)},
    "generators": {"generators": torch.zeros(2, 7, dtype=torch.uint8)},
    "others": {"weights": torch.zeros(1)},
}


@pytest.mark.parametrize("change", TRUTHS.values(), ids=TRUTHS)
def test_truths_that_are_refused(tmp_path, change):
    from safetensors.torch import save_file

    about = {"format": TRUTH, "version": 1, "record": "", "date": "2030-01-01T00:00:00+00:00", "days": 1}
    tensors = {"images": torch.rand(3, 1, 4, 4), "labels": torch.tensor([0, 1, 0]), **change}
    save_file(tensors, tmp_path / "t", {TRUTH: json.dumps(about)})
    with pytest.raises(InputError, match=r"the truth file .* is not valid"):
        Truth.load(tmp_path / "t")


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"date": "soon"}, {"date": 5}, {"days": -1}, {"days": 1e9}, {"record": 5}]
)
def test_headers_of_truths_that_are_refused(tmp_path, changes):
    from safetensors.torch import save_file

    about = {"format": TRUTH, "version": 1, "record": "", "date": "2030-01-01T00:00:00+00:00", "days": 1, **changes}
    save_file({"images": torch.rand(1, 1, 4, 4), "labels": torch.zeros(1)}, tmp_path / "t", {TRUTH: json.dumps(about)})
    with pytest.raises(InputError, match=r"the truth file .* is not valid"):
        Truth.load(tmp_path / "t")


# --- steps ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(1, 6),
    images=st.integers(1, 20),
    epochs=st.integers(1, 4),
    momentum=st.sampled_from([0.0, 0.9]),
    sampling=st.sampled_from(["shuffle", "poisson"]),
    mode=st.sampled_from(["train", "eval"]),
)
def test_steps_of_a_plan_are_regular_and_give_the_plan_back(batch, images, epochs, momentum, sampling, mode):
    if sampling == "poisson":
        images = batch * images
    batch = min(batch, images)
    plan = Plan("FedAvg", batch, images, epochs, momentum=momentum, sampling=sampling, mode=mode, sends=())
    steps = Steps.of(plan, ["bn"])
    assert Steps.from_dict(json.loads(json.dumps(steps.to_dict()))) == steps
    assert steps.regular() == plan


@pytest.mark.parametrize(
    ("sizes", "images", "expected"),
    [
        ([4, 4, 2] * 2, None, (4, 10, 2)),
        ([4] * 10, None, (4, 40, 1)),
        ([4] * 10, 20, (4, 20, 2)),
        ([3], None, (3, 3, 1)),
    ],
)
def test_epochs_are_found_from_the_sizes_of_batches(sizes, images, expected):
    plan = Steps(tuple(map(Step, sizes))).regular(images)
    assert (plan.batch_size, plan.images, plan.epochs) == expected


def test_sizes_that_are_no_epochs():
    for sizes in ([2, 4], [4, 3, 4], [4, 2, 4, 4]):
        assert "are no whole epochs" in Steps(tuple(map(Step, sizes))).irregularity()


@pytest.mark.parametrize(
    ("sizes", "images", "expected"),
    [([2] * 4, 4, (2, 4, 2)), ([2] * 2, 4, (2, 4, 1)), ([3] * 2, None, (3, 3, 2))],
)
def test_steps_under_poisson_sampling_are_whole_epochs(sizes, images, expected):
    plan = Steps(tuple(map(Step, sizes)), "poisson", images).regular()
    assert (plan.batch_size, plan.images, plan.epochs, plan.steps) == (*expected, len(sizes))


@pytest.mark.parametrize(
    ("sizes", "images", "message"),
    [
        ([2] * 3, 4, "3 steps with 2 of 4 images are no whole epochs under Poisson sampling"),
        ([2], 4, "1 steps with 2 of 4 images are no whole epochs"),
        ([2] * 5, 5, "5 steps with 2 of 5 images are no whole epochs"),
        ([1, 3], 4, r"take \[1, 3\] images: state the same expected number for each"),
    ],
)
def test_steps_under_poisson_sampling_that_no_plan_has(sizes, images, message):
    with pytest.raises(InputError, match=message):
        Steps(tuple(map(Step, sizes)), "poisson", images).regular()


def test_one_gradient_under_poisson_sampling_is_a_part_of_the_images():
    plan = Steps((Step(2, optimizer=""),), "poisson", 8).regular()
    assert (plan.algorithm, plan.batch_size, plan.images) == ("FedSGD", 2, 8)
