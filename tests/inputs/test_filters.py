"""Filters that records name, and the defenses that are equal to them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from medpfl.core.roles import NO_DEFENSE
from medpfl.defenses import Clipping, GaussianNoise, LocalDP, PercentilePrivacy, SVTPrivacy
from medpfl.inputs.filters import defense_of

KNOWN = {
    "PercentilePrivacy(percentile=10, gamma=0.01)": PercentilePrivacy(10, 0.01),
    "PercentilePrivacy(percentile=20, gamma=0.1, data_kinds=['WEIGHT_DIFF'], steps=5)": PercentilePrivacy(20, 0.1, 5),
    "SVTPrivacy(fraction=0.2, epsilon=0.1, noise_var=0.1, gamma=1e-05, tau=1e-06, replace=False)": SVTPrivacy(
        0.2, replace=False
    ),
    "LocalDpMod(clipping_norm=1.0, sensitivity=0.5, epsilon=10.0, delta=1e-06)": LocalDP(1.0, 0.5, 10.0, 1e-6),
    "fixedclipping_mod(clipping_norm=2.0)": Clipping(2.0),
    "medpfl.defend('Clipping(norm=1.0) | GaussianNoise(scale=0.1)')": Clipping(1.0) | GaussianNoise(0.1),
    "medpfl.defend('Clipping(norm=1.0, scope='layer')')": Clipping(1.0, "layer"),
    "medpfl.Defense(\"Clipping(norm=1.0, scope='layer')\")": Clipping(1.0, "layer"),
    "message_size_mod": NO_DEFENSE,
}


@pytest.mark.parametrize(("text", "defense"), KNOWN.items())
def test_a_stock_filter_is_a_defense(text, defense):
    found = defense_of([text], "r", buffers=False)
    assert (repr(found.defense), found.unknown) == (repr(defense), ())


def test_filters_are_joined_in_their_order():
    found = defense_of(
        ["fixedclipping_mod(clipping_norm=2.0)", "arrays_size_mod", *list(KNOWN)[3:4]], "r", buffers=False
    )
    assert found.defense == Clipping(2.0) | LocalDP(1.0, 0.5, 10.0, 1e-6)


UNKNOWN = (
    "ExcludeVars(exclude_vars=['a'])",
    "fixedclipping_mod",
    "PercentilePrivacy",
    "PercentilePrivacy(percentile=200, gamma=0.01)",
    "PercentilePrivacy(percentile='x', gamma=0.01)",
    "SVTPrivacy(fraction=0.2, other=1)",
    "SVTPrivacy(fraction=0.2, data_kinds=['WEIGHTS'])",
    "PercentilePrivacy(percentile=10, gamma=0.01, data_kinds=['WEIGHT_DIFF', 'WEIGHTS'], on='WEIGHTS')",
    "LocalDpMod(clipping_norm=1.0, sensitivity=0.0, epsilon=1.0, delta=1e-06)",
    "medpfl.defend('os:system')",
    "medpfl.defend('Nothing()')",
    "__import__('os').system('x')",
    "own.py:Filter()",
    "",
    "medpfl.defend('a', {[]: 1}, 'b')",
    f"medpfl.defend('Clipping({'-' * 3900}1)')",
    f"medpfl.Defense('{'a|' * 1900}a')",
    "PercentilePrivacy(gamma=0.01)",
    "PercentilePrivacy(percentile=10)",
    "PercentilePrivacy(percentile=10, gamma=...)",
    "PercentilePrivacy(percentile=10, gamma=0.01, data_kinds=...)",
    "SVTPrivacy(fraction=0.2)",
    "SVTPrivacy(fraction=0.2, epsilon=0.1, noise_var=0.1, gamma=1e-05, tau=1e-06, replace=...)",
    "LocalDpMod(clipping_norm=1.0)",
    "own.PercentilePrivacy(percentile=10, gamma=0.01)",
)


@pytest.mark.parametrize("text", UNKNOWN)
def test_one_unknown_filter_makes_the_whole_unknown(text):
    assert defense_of([text], "r", buffers=False) == (NO_DEFENSE, (text,))
    assert defense_of(["fixedclipping_mod(clipping_norm=2.0)", text], "r", buffers=False) == (NO_DEFENSE, (text,))


def test_flower_s_clipping_counts_buffers_which_no_defense_here_does():
    text = "fixedclipping_mod(clipping_norm=2.0)"
    assert defense_of([text], "r", buffers=True).unknown == (text,)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    some.sampled_from(["medpfl.defend('", 'medpfl.Defense("', "PercentilePrivacy(", "SVTPrivacy(*", ""]),
    some.text(some.sampled_from("ab1.,'\"()[]{}:=*-|\\ \x00\ud800") | some.characters(), max_size=60),
    some.sampled_from(["')", '")', ")", ""]),
)
def test_no_text_of_a_filter_is_an_error(start, inside, end):
    assert defense_of([start + inside + end], "r", buffers=False) is not None
