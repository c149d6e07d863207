"""Training checkpoints: their content, and that an audit accepts one as its model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from medpfl import InputError, Victims, Weights, audit
from medpfl.federated.training import Standing
from medpfl.inputs.checkpoint import checkpoint_at, is_checkpoint
from medpfl.training.state_files import packed, unpacked
from tests.auditing.audit_cases import some_images
from tests.flat import flat
from tests.training.training_cases import plainly, small

AUDIT = {"attacks": ["iDLG(steps=3)"], "images": 2, "progress": False}


@pytest.mark.slow
@pytest.mark.parametrize("defense", ["NoDefense", "PRECODE(width=4)", "Soteria(prune=0.3)"])
def test_it_is_the_model_that_was_trained(defense, tmp_path):
    out = tmp_path / "runs" / "a"
    result = small(out=out, defense=defense)
    network = checkpoint_at(out).build((1, 16, 16), 2, seed=9)
    own = Weights.of(network)
    for name, value in result.weights.parameters.items():
        assert torch.equal(own.parameters[name], value)
    first = Weights.of(checkpoint_at(out, 0).build((1, 16, 16), 2, seed=9)).parameters
    assert any(not torch.equal(first[name], value) for name, value in result.weights.parameters.items())
    assert (checkpoint_at(out).round, checkpoint_at(out / "round-1").round) == (3, 1)


@pytest.mark.slow
def test_an_audit_takes_it(tmp_path):
    out = tmp_path / "runs" / "a"
    small(out=out)
    last, first = (flat(audit, place, some_images(8), **AUDIT) for place in (str(out), out / "round-0"))
    assert {row.model for row in last.rows} == {"Checkpoint(trained='MLP(hidden=(6,))', round=3)"}
    assert last.settings.experiment["weights"] == "trained, round 3"
    assert [r.scores["ssim"] for r in last.rows] != [r.scores["ssim"] for r in first.rows]
    untrained = flat(audit, "MLP(hidden=(6,))", some_images(8), **AUDIT)
    assert untrained.settings.experiment["weights"] == "untrained"
    with pytest.raises(InputError, match="it loads or sets its own"):
        flat(audit, str(out), some_images(8), **AUDIT, victims=Victims(draws=2))


@pytest.mark.slow
def test_a_training_under_a_defense_of_ones_own_is_audited(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from medpfl.core.roles import Defense\n"
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, repr=False)\n"
        "class Mine(Defense):\n"
        "    pass\n"
    )
    out = tmp_path / "runs" / "a"
    result = small(out=out, defense=f"{tmp_path / 'mine.py'}:Mine()")
    network = checkpoint_at(out).build((1, 16, 16), 2, seed=9)
    assert all(torch.equal(t, result.weights.parameters[k]) for k, t in Weights.of(network).parameters.items())


@pytest.mark.slow
def test_an_audit_does_not_go_into_the_directory_of_a_training(tmp_path):
    out = tmp_path / "runs" / "a"
    small(out=out)
    for force in (False, True):
        with pytest.raises(InputError, match="holds a training, not an audit: name another --out"):
            flat(audit, "MLP((6,))", some_images(8), out=out, force=force, **AUDIT)
    assert (out / "share/rounds.jsonl").is_file()


@pytest.mark.slow
def test_images_of_another_size_are_told_the_size(tmp_path):
    out = tmp_path / "runs" / "a"
    small(out=out)
    data = some_images(8)
    with pytest.raises(InputError, match=r"trained on images of \(1, 16, 16\), .*--size 16 --channels 1"):
        flat(audit, str(out), replace(data, images=data.images[..., :12, :12]), **AUDIT)


@pytest.mark.slow
def test_a_round_that_is_not_there(tmp_path):
    out = tmp_path / "runs" / "a"
    small(out=out)
    with pytest.raises(InputError, match=r"has no round 7: there are 0, 1, 2, 3"):
        checkpoint_at(out, 7)
    (tmp_path / "empty").mkdir()
    assert not is_checkpoint(tmp_path / "empty")
    assert not is_checkpoint("MLP")
    assert not is_checkpoint("")
    with pytest.raises(InputError, match="is a folder without training rounds"):
        flat(audit, str(tmp_path / "empty"), some_images(8), **AUDIT)


@pytest.mark.slow
def test_weights_of_another_model(tmp_path):
    one, other = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    small(out=one)
    small(out=other, model="MLP(hidden=(7,))")
    place = other / "round-3" / "weights.safetensors"
    content = place.read_bytes().replace(b"MLP(hidden=(7,))", b"MLP(hidden=(6,))")
    place.write_bytes(content)
    with pytest.raises(
        InputError, match=r"belongs to another model:\n  .*\n  1.weight: \(7, 256\) in the checkpoint, \(6, 256\)"
    ):
        checkpoint_at(other).build((1, 16, 16), 2, 0)


@pytest.mark.slow
def test_names_that_do_not_fit(tmp_path):
    out = tmp_path / "runs" / "a"
    small(out=out)
    model = checkpoint_at(out)
    from medpfl.inputs.checkpoint import put_weights

    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 6), nn.Linear(6, 2, bias=False))
    wrong = r"2.weight: in the model, not in the checkpoint\n  3.bias: in the checkpoint, not in the model"
    with pytest.raises(InputError, match=wrong):
        put_weights(network, model.path)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_damaged_files(content, tmp_path):
    out = tmp_path / "runs" / "a"
    small(out=out)
    (out / "round-3" / "weights.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is not a training checkpoint, or it is damaged"):
        checkpoint_at(out)
    (out / "round-2" / "state.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is not a training state, or it is damaged"):
        unpacked(out / "round-2" / "state.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights.safetensors", "state.safetensors"])
def test_a_training_with_a_damaged_last_round_says_what_to_delete_and_then_goes_on(name, tmp_path):
    out = tmp_path / "runs" / "a"
    whole = small(out=out)
    (out / "round-3" / name).write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"damaged: .*; delete '.*round-3' and repeat the command to redo that round"):
        small(out=out, rounds=4)
    shutil.rmtree(out / "round-3")
    longer = small(out=out, rounds=4)
    assert plainly(longer.rows[:4]) == plainly(whole.rows)
    assert len(longer.rows) == 5


def test_other_safetensors_are_no_checkpoint(tmp_path):
    (tmp_path / "round-0").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "round-0" / "weights.safetensors")
    with pytest.raises(InputError, match="is not a training checkpoint"):
        checkpoint_at(tmp_path)


@pytest.mark.slow
def test_a_model_of_the_user_is_given_with_the_weights(tmp_path):
    out, network = tmp_path / "runs" / "a", nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    result = small(model=network, out=out)
    with pytest.raises(InputError, match=r"is not stored in its folder .*--weights '.*round-3/weights.safetensors'"):
        flat(audit, str(out), some_images(8), **AUDIT)
    file = out / "round-3" / "weights.safetensors"
    flat(audit, network, some_images(8), weights=file, **AUDIT)
    assert torch.equal(load_file(file)["1.weight"], result.weights.parameters["1.weight"])


def test_any_state_comes_back_as_it_was(tmp_path):
    state = {"owed": {"a.b/c": torch.rand(2, 3), "": torch.tensor(3)}, "steps": 4, "name": None, "list": [1.5, True]}
    before = Standing(Weights({}), {"a": torch.rand(2)}, (state, {}), {"x": 1}, (2, 1))
    (tmp_path / "s").write_bytes(packed(before))
    after = unpacked(tmp_path / "s")
    assert torch.equal(after["velocity"]["a"], before.velocity["a"])
    assert torch.equal(after["clients"][0]["owed"]["a.b/c"], state["owed"]["a.b/c"])
    assert after["clients"][0]["owed"][""].dtype == torch.int64
    del after["clients"][0]["owed"], state["owed"]
    assert after["clients"][0] == state
    assert (after["clients"][1], after["server"], after["taken"]) == ({}, {"x": 1}, (2, 1))
    with pytest.raises(InputError, match="keeps a object in its state"):
        packed(Standing(Weights({}), {}, ({"x": object()},), {}, (0,)))


HEADERS = {
    "a model of many parameters": ({"model": "MLP((99999999999,))"}, "hidden is 99999999999"),
    "a model of more": ({"model": "MLP((99999999,))"}, "hidden is 99999999"),
    "no model": ({"model": 3}, "its header says model 3"),
    "a model of many layers": ({"model": "ViT(depth=99999999)"}, "depth is 99999999"),
    "classes": ({"classes": -5}, "classes is -5"),
    "many classes": ({"classes": 10**12}, "classes is 1000000000000"),
    "large images": ({"image_shape": [1, 99999, 99999]}, "image shape"),
    "no images": ({"image_shape": [[1], "x", None]}, "image shape"),
    "no shape": ({"image_shape": 7}, "image shape"),
    "a round": ({"round": -1}, "round is -1"),
    "no round": ({"round": "5"}, "round '5'"),
    "a seed": ({"seed": None}, "seed None"),
    "a defense": ({"defense": ["x"]}, "defense"),
    "one word more": ({"extra": 1}, "extra"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "message"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_cannot_be_true(change, message, tmp_path):
    out = tmp_path / "runs" / "a"
    small(out=out, rounds=1)
    place = out / "round-1" / "weights.safetensors"
    with safe_open(place, "pt") as file:
        about = json.loads(file.metadata()["medpfl-round"])
    save_file(load_file(place), place, {"medpfl-round": json.dumps({**about, **change})})
    with pytest.raises(InputError, match=message):
        checkpoint_at(out).build((1, 16, 16), 2, 0)


@pytest.mark.slow
def test_weights_that_are_none(tmp_path):
    out = tmp_path / "runs" / "a"
    small(out=out, rounds=1)
    place = out / "round-1" / "weights.safetensors"
    with safe_open(place, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file({name: t.cfloat() for name, t in tensors.items()}, place, header)
    with pytest.raises(InputError, match="holds complex numbers"):
        checkpoint_at(out).build((1, 16, 16), 2, 0)


HOSTILE = ["os:system('id')", "mine.py:make", "ResNet(depth=18, weights='/etc/passwd')", "LeNet(variant='cuda:0')"]


def rewrite(file, **changes):
    """Put another header on a checkpoint's tensors, as another party may write it."""
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["medpfl-round"]) | changes
    save_file(load_file(file), file, {"medpfl-round": json.dumps(about)})


@pytest.mark.slow
@pytest.mark.parametrize("field", ["model", "defense"])
@pytest.mark.parametrize("spec", HOSTILE)
def test_a_checkpoint_cannot_run_code_or_read_a_file(field, spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("open('marker', 'w').close()\ndef make(): pass\n")
    out = tmp_path / "runs" / "a"
    small(out=out)
    rewrite(out / "round-3" / "weights.safetensors", **{field: spec})
    with pytest.raises(InputError, match=r"give --model.* yourself if you trust that file"):
        flat(audit, str(out), some_images(8), **AUDIT)
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"round": -1}, {"round": "1"}, {"model": 5}, {"defense": None}, {"image_shape": [1, 16]}, {"image_shape": "16"},
        {"image_shape": [1, 10**9, 16]}, {"image_shape": [[1], {}, 16]}, {"classes": 10**12}, {"classes": True},
        {"seed": "x"}, {"seed": 1e300}, {"more": 1}, {"version": [1]}, {"model": "MLP((99999999999,))"},
    ],
    ids=repr,
)  # fmt: skip
def test_every_field_of_a_checkpoint_is_checked(change, tmp_path):
    out = tmp_path / "runs" / "a"
    small(out=out, rounds=1)
    rewrite(out / "round-1" / "weights.safetensors", **change)
    with pytest.raises(InputError):
        flat(audit, str(out), some_images(8), **AUDIT)


@pytest.mark.slow
def test_a_training_of_ones_own_model_by_its_file_is_audited_with_the_model_named(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))\n"
    )
    out, model = tmp_path / "runs" / "a", f"{tmp_path / 'mine.py'}:make"
    small(model=model, out=out)
    with pytest.raises(InputError, match=r"give the model itself as --model, with --weights '.*weights.safetensors'"):
        flat(audit, str(out), some_images(8), **AUDIT)
    report = flat(audit, model, some_images(8), weights=out / "round-3" / "weights.safetensors", **AUDIT)
    assert report.settings.experiment["weights"] == "given"
