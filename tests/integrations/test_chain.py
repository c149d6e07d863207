"""Filters as records name them: numbers, but no text that may be private."""

from __future__ import annotations

from functools import partial

import numpy as np

from medpfl.inputs.filters import defense_of
from medpfl.integrations.chain import described


class Tag:
    def __init__(self, hospital, mapping, scale, sizes, table):
        self.hospital, self.mapping, self.scale, self.sizes, self.table = hospital, mapping, scale, sizes, table
        self.spec = f"Tag({mapping!r})"


class PercentilePrivacy:
    def __init__(self, percentile=10, gamma=0.01, data_kinds=None, off=None):
        self.percentile, self.gamma, self.data_kinds = percentile, gamma, data_kinds


def fixedclipping_mod():
    """Stand for a function of the user with the name of a stock mod."""


def test_a_filter_of_the_user_is_written_with_its_numbers_only():
    tag = Tag("Waldklinik", "/data/Mueller_Hans/map.csv", np.float32(0.5), [1, "Mueller"], {"Mueller": 1})
    assert described(tag) == "Tag(hospital=..., mapping=..., scale=0.5, sizes=[1, ...], table=...)"
    whole = described(partial(print, "/data/Mueller_Hans", end="Mueller"))
    assert "Mueller" not in whole


def test_a_filter_that_only_has_a_known_name_is_unknown():
    for part in (PercentilePrivacy(), fixedclipping_mod):
        text = described(part)
        assert text.startswith(f"own.{getattr(part, '__name__', 'PercentilePrivacy')}")
        assert defense_of([text], "r", buffers=False).unknown == (text,)


def test_a_stock_filter_is_written_with_its_words_and_what_it_does_not_hold_is_left_open(monkeypatch):
    monkeypatch.setattr(PercentilePrivacy, "__module__", "nvflare.app_common.filters.percentile_privacy")
    text = described(PercentilePrivacy(np.float64(20), 0.1, ["WEIGHT_DIFF", "/data/Mueller"]))
    assert text == "PercentilePrivacy(percentile=20.0, gamma=0.1, data_kinds=['WEIGHT_DIFF', ...], off=...)"
    assert defense_of([text], "r", buffers=False).unknown == (text,)
