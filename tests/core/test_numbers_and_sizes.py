"""Bounds on input from a person or a file."""

from __future__ import annotations

import pytest

from medpfl import InputError
from medpfl.core.experiments.limits import (
    CLASSES,
    PARAMETERS,
    PIXELS,
    check_classes,
    check_image_shape,
    check_parameters,
)


@pytest.mark.parametrize("shape", [(1, 8, 8), [3, 4, 8, 8], (1, PIXELS, 1)])
def test_shapes_of_images_and_volumes(shape):
    assert check_image_shape(shape) == tuple(shape)


@pytest.mark.parametrize(
    "shape",
    [(1, 99999, 99999), (1, PIXELS, 2), (0, 8, 8), (-1, 8, 8), (8, 8), (1, 2, 3, 4, 5), "188", None, (1, "8", 8),
     (1, 8.0, 8), (True, 8, 8), [[1], 8, 8], (10**4000, 8, 8)],
    ids=lambda shape: str(shape)[:20],
)  # fmt: skip
def test_other_shapes(shape):
    with pytest.raises(InputError, match=r"^image shape ") as error:
        check_image_shape(shape)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("classes", [0, -5, CLASSES + 1, 10**4000, 2.0, "2", None, True])
def test_classes(classes):
    assert check_classes(CLASSES) == CLASSES
    with pytest.raises(InputError, match=r"^classes is"):
        check_classes(classes)


@pytest.mark.parametrize("count", [PARAMETERS + 1, 10**30, 10**4000])
def test_parameters(count):
    check_parameters(PARAMETERS)
    with pytest.raises(InputError, match=r"the most is 1,000,000,000"):
        check_parameters(count)
