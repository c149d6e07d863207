"""The accuracy benchmark on the real set: federated training works, and about as well as central training."""

from __future__ import annotations

import pytest

from benchmarks import utility

pytestmark = pytest.mark.extra


@pytest.mark.slow
@pytest.mark.parametrize("name", list(utility.PARTITIONS))
def test_a_few_rounds_tell_pneumonia_from_none(name, real_sets):
    path = real_sets / "pneumonia_mnist" / "pneumoniamnist.npz"
    if not path.is_file():
        pytest.skip("the training set (shared/data/pneumonia_mnist) is not on this machine")
    scores = utility.run(str(path), utility.PARTITIONS[name], seed=0, rounds=3, judged="validation")
    assert scores["auroc"] > 0.85
    assert scores["balanced_accuracy"] > 0.72
