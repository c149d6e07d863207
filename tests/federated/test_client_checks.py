"""The output of a user's own defense is checked at once."""

from __future__ import annotations

import pytest
import torch

from medpfl import InputError, Update
from medpfl.defenses import NoDefense
from medpfl.federated.client import checked_sent

RAW = Update({"0.weight": torch.rand(2, 3), "0.bias": torch.rand(2)})


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "its update returned a NoneType: return \\(update, state\\)"),
        ((RAW.tensors, {}), "its update returned a tuple"),
        ((RAW.replace({}), {}), "does not return '0.bias'"),
        ((RAW.replace({"a": torch.rand(2)}), {}), "does not return '0.bias'"),
        ((RAW.replace({**RAW.tensors, "a": torch.rand(2)}), {}), "returns 'a' as \\(2,\\), but was given none"),
        (
            (RAW.replace({k: t.flatten() for k, t in RAW.tensors.items()}), {}),
            "'0.weight' as \\(6,\\), but was given \\(2, 3\\)",
        ),
        ((RAW.replace({k: t.numpy() for k, t in RAW.tensors.items()}), {}), "'0.bias' as ndarray"),
    ],
)
def test_what_is_no_update_of_the_same_tensors_names_the_defense(made, said):
    with pytest.raises(InputError, match=rf"^NoDefense\(\): .*{said}"):
        checked_sent(made, NoDefense(), RAW)


def test_an_update_of_the_same_tensors_passes():
    sent = RAW.replace({name: -t for name, t in RAW.tensors.items()})
    assert checked_sent((sent, {"a": 1}), NoDefense(), RAW) == (sent, {"a": 1})
