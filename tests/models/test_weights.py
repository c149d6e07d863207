"""Weights files: matching tensors are loaded, others are named, and code in a pickle does not run."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from medpfl.core.errors import InputError
from medpfl.models.weights import check_finite, check_plain, load_weights


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def state(**changes):
    return {k: t.clone() for k, t in network(1).state_dict().items()} | changes


def written(path: Path, content) -> Path:
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


WAYS = {
    "safetensors": lambda folder, content: written(folder / "w.safetensors", content),
    "state dict": lambda folder, content: written(folder / "w.pt", content),
    "checkpoint": lambda folder, content: written(folder / "w.ckpt", {"state_dict": content, "epoch": 3}),
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@each_way
def test_loads_every_weight_and_buffer(tmp_path, way):
    wanted = state(**{"1.running_var": torch.tensor([3.0, 4.0])})
    target = network()
    assert load_weights(target, way(tmp_path, wanted)) is None
    assert all(torch.equal(t, wanted[k]) for k, t in target.state_dict().items())


@each_way
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_that_were_saved_from_inside_a_wrapper(tmp_path, way, prefix):
    """The wrappers are `nn.DataParallel`, its distributed sibling, and `torch.compile`."""
    wanted = state()
    target = network()
    load_weights(target, way(tmp_path, {f"{prefix}{name}": t for name, t in wanted.items()}))
    assert all(torch.equal(t, wanted[k]) for k, t in target.state_dict().items())


def test_a_prefix_that_is_the_network_s_own_or_not_of_all_stays(tmp_path):
    inner = nn.Module()
    inner.module = network()
    wanted = {f"module.{name}": t for name, t in state().items()}
    load_weights(inner, written(tmp_path / "w.pt", wanted))
    assert all(torch.equal(t, wanted[k]) for k, t in inner.state_dict().items())
    with pytest.raises(InputError, match=r"0\.bias: in the model, not in the file"):
        load_weights(network(), written(tmp_path / "w.pt", {**wanted, "epoch": torch.zeros(1)}))


@each_way
def test_wrong_keys_are_named(tmp_path, way):
    content = state(**{"0.wieght": torch.zeros(2, 3)})
    del content["0.weight"]
    target, before = network(), state()
    target.load_state_dict(before)
    with pytest.raises(InputError) as error:
        load_weights(target, way(tmp_path, content))
    assert "0.weight: in the model, not in the file" in str(error.value)
    assert "0.wieght: in the file, not in the model" in str(error.value)
    assert all(torch.equal(t, before[k]) for k, t in target.state_dict().items())


@each_way
def test_wrong_shapes_are_named(tmp_path, way):
    with pytest.raises(InputError, match=r"0.weight: \(5, 3\) in the file, \(2, 3\) in the model"):
        load_weights(network(), way(tmp_path, state(**{"0.weight": torch.zeros(5, 3)})))


def test_many_problems_are_counted(tmp_path):
    content = {f"layer{i}.weight": torch.zeros(1) for i in range(10)}
    with pytest.raises(InputError, match=r"and 9 more$") as error:
        load_weights(network(), written(tmp_path / "w.pt", content))
    assert len(str(error.value).splitlines()) == 1 + 8 + 1


@each_way
@pytest.mark.parametrize("name", ["0.weight", "1.running_mean"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path, way, name, value):
    content = state()
    content[name].flatten()[-1] = value
    with pytest.raises(InputError, match=f"'{name}' holds values that are not finite"):
        load_weights(network(), way(tmp_path, content))


def test_check_finite_says_what():
    check_finite(network())
    bad = network()
    bad[0].bias.data[0] = torch.nan
    with pytest.raises(InputError, match=r"the model: '0.bias' holds"):
        check_finite(bad)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_code_is_refused_and_not_run(tmp_path, save):
    mark, path = tmp_path / "mark", tmp_path / "w.pt"
    save({"0.weight": Evil(mark)}, path)
    with pytest.raises(InputError, match="is not a weights file: it must be safetensors, or a state dict"):
        load_weights(network(), path)
    assert not mark.exists()


def test_a_whole_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"saved with torch.save\(model.state_dict\(\), path\) and nothing else"):
        load_weights(network(), written(tmp_path / "w.pt", network()))


@pytest.mark.parametrize("content", [[torch.zeros(1)], torch.zeros(3), {"epoch": 3}, {"state_dict": {"a": 1}}, 5])
def test_other_contents_are_refused(tmp_path, content):
    with pytest.raises(InputError, match="not a state dict of tensors"):
        load_weights(network(), written(tmp_path / "w.pt", content))


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(InputError, match="there is no weights file"):
        load_weights(network(), tmp_path / "none.pt")
    with pytest.raises(InputError, match="there is no weights file"):
        load_weights(network(), tmp_path)
    for name in ("w.safetensors", "w.pt"):
        for content in (b"", b"hello", b"\x80\x04K\x01.", b"PK\x03\x04"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InputError, match=r"is not a weights file|not a state dict"):
                load_weights(network(), tmp_path / name)


@pytest.fixture(scope="module", params=["zip", "legacy"])
def intact(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=request.param == "zip")
    load_weights(network(), path)
    return path


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0.1, 1), changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=3))
def test_damaged_files_are_refused_or_read(intact, cut, changes):
    content = bytearray(intact.read_bytes())
    content = content[: int(cut * len(content))]
    for share, value in changes:
        content[int(share * len(content))] = value
    damaged = intact.with_name("damaged.pt")
    damaged.write_bytes(content)
    with suppress(InputError):
        load_weights(network(), damaged)


@pytest.mark.parametrize("key", ["model_state_dict", "model", "net", "params", "state_dict", "generator"])
@pytest.mark.parametrize("prefix", ["", "module.", "_module.", "model.", "net._orig_mod."])
def test_a_checkpoint_of_a_training(tmp_path, key, prefix):
    wanted, target = state(), network()
    optimizer = torch.optim.Adam(target.parameters()).state_dict()
    content = {"epoch": 3, key: {f"{prefix}{k}": t for k, t in wanted.items()}, "optimizer_state_dict": optimizer}
    load_weights(target, written(tmp_path / "w.pt", content))
    assert all(torch.equal(t, wanted[k]) for k, t in target.state_dict().items())


def test_the_state_dict_counts_where_there_is_an_average_too(tmp_path):
    wanted, target = state(), network()
    averaged = {k: t + 1 for k, t in wanted.items()}
    load_weights(target, written(tmp_path / "w.pt", {"ema": averaged, "state_dict": wanted}))
    assert all(torch.equal(t, wanted[k]) for k, t in target.state_dict().items())
    with pytest.raises(InputError, match=r"several state dicts \('a', 'b'\): .*torch.save\(checkpoint\['a'\], path\)"):
        load_weights(network(), written(tmp_path / "w.pt", {"a": averaged, "b": wanted}))


def test_a_model_among_other_parts_is_told_apart(tmp_path):
    """Lightning keeps the loss's weights beside the model's."""
    content = {f"model.{k}": t for k, t in state().items()} | {"criterion.weight": torch.ones(2)}
    with pytest.raises(InputError, match=r"the names that begin with 'model.' are the model's: save only these"):
        load_weights(network(), written(tmp_path / "w.pt", {"state_dict": content}))


ODD = {
    "meta": (lambda t: t.to("meta"), "is on the meta device"),
    "sparse": (lambda t: t.to_sparse(), r"is a sparse tensor: use its \.to_dense\(\)"),
    "quantized": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), r"is quantized, .*\.dequantize\(\)"),
    "complex": (lambda t: t.cfloat(), "holds complex numbers: use torch.view_as_real"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), r"is of torch\.float8_e4m3fn, .*use its \.float\(\)"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*[Qq]uantiz")
@pytest.mark.parametrize(("change", "message"), ODD.values(), ids=ODD)
def test_tensors_that_are_no_weights(tmp_path, change, message):
    content = state()
    content["0.weight"] = change(content["0.weight"])
    with pytest.raises(InputError, match=f"'0.weight' {message}"):
        load_weights(network(), written(tmp_path / "w.pt", content))


@pytest.mark.parametrize("name", ["complex", "float8"])
def test_such_tensors_in_safetensors(tmp_path, name):
    change, message = ODD[name]
    with pytest.raises(InputError, match=f"'0.weight' {message}"):
        load_weights(network(), written(tmp_path / "w.safetensors", state(**{"0.weight": change(torch.zeros(2, 3))})))


def test_names_that_are_no_texts(tmp_path):
    with pytest.raises(InputError, match="a tensor named 0, which is not a string: save the model's own state_dict"):
        load_weights(network(), written(tmp_path / "w.pt", dict(enumerate(state().values()))))
    with pytest.raises(InputError, match="which is not a string"):
        load_weights(network(), written(tmp_path / "w.pt", {**state(), (1, 2): torch.zeros(1)}))


def test_half_precision_and_an_expanded_tensor_without_memory(tmp_path):
    load_weights(network(), written(tmp_path / "w.pt", {k: t.half() for k, t in state().items()}))
    with pytest.raises(InputError, match=r"0.weight: \(1000000, 10000000\) in the file"):
        load_weights(network(), written(tmp_path / "w.pt", state(**{"0.weight": torch.zeros(1).expand(10**6, 10**7)})))


@pytest.mark.parametrize("change", [lambda t: t.to("meta"), lambda t: t.cfloat()], ids=["meta", "complex"])
def test_a_model_of_such_tensors(change):
    odd = network()
    odd[0].weight = nn.Parameter(change(odd[0].weight.detach()))
    with pytest.raises(InputError, match=r"the model: '0.weight' (is on the meta|holds complex)"):
        check_plain(odd)
    check_plain(network())
