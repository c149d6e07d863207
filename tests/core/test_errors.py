"""Error messages suggest the name that was probably meant."""

import pytest

from medpfl.core.errors import InputError, nearest


@pytest.mark.parametrize(
    ("name", "known", "end"),
    [
        ("gausianNoise", ["GaussianNoise", "LaplaceNoise"], "did you mean 'GaussianNoise'?"),
        ("IDLG", ["DLG", "iDLG"], "did you mean 'iDLG'?"),
        ("zzz", ["DLG", "iDLG"], "known: DLG, iDLG"),
        ("lables", iter(["labels", "order"]), "did you mean 'labels'?"),
        ("x", [], "known: "),
    ],
)
def test_nearest(name, known, end):
    assert nearest(name, known) == end


def test_input_errors_are_value_errors():
    assert issubclass(InputError, ValueError)
