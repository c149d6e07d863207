"""Verdicts under known rates: "no leak found" is rare if one image in five leaks."""

from __future__ import annotations

import pytest

from benchmarks.verdicts import Case, lines, parsed, shares
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK

pytestmark = pytest.mark.extra


@pytest.mark.slow
@pytest.mark.parametrize("way", ["read", "recognized"])
@pytest.mark.parametrize(("batch", "whole"), [(1, False), (4, True)])
def test_no_leak_is_not_found_where_a_fifth_leaks(way, batch, whole):
    """At most 2.5 %. At that share, 5 in 60 audits would have a probability below 2 %."""
    found = shares(Case(updates=20, batch=batch, attacks=2, rate=0.2, way=way, whole=whole), repeats=60)
    assert found[NO_LEAK] < 5 / 60


@pytest.mark.slow
def test_few_updates_are_inconclusive_and_many_without_a_leak_are_not():
    assert shares(Case(4, 1, 1, 0.0), repeats=20)[INCONCLUSIVE] == 1
    assert shares(Case(40, 1, 1, 0.0), repeats=20)[NO_LEAK] == 1
    assert shares(Case(24, 1, 1, 0.5), repeats=20)[LEAKS] == 1


@pytest.mark.slow
def test_what_is_printed_ends_in_the_worst_share():
    *table, last = lines(parsed(["--repeats", "1", "--updates", "4"]))
    assert len(table) == 2 + 8 * 2 + 8 * 4
    assert "where 20 % or more leak: 0.000" in last
