"""What becomes of a leak when assumptions are dropped."""

from __future__ import annotations

import pytest

from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.judging.dependence import ENDS, STAYS, UNCLEAR, WEAKER, fate_of
from medpfl.judging.types import READ, RECOGNIZED, Rate, Union

HIGH, LOW, BROAD = Rate(1.0, 0.8, 1.0), Rate(0.0, 0.0, 0.3), Rate(0.1, 0.0, 0.85)
BOTH = Union(asr=HIGH, identified=HIGH, leaks_by=(READ, RECOGNIZED), verdict=LEAKS)


@pytest.mark.parametrize(
    ("other", "fate"),
    [
        (BOTH, STAYS),
        (Union(asr=BROAD, identified=HIGH, leaks_by=(RECOGNIZED,), verdict=LEAKS), STAYS),
        (Union(asr=LOW, identified=HIGH, leaks_by=(RECOGNIZED,), verdict=LEAKS), WEAKER),
        (Union(asr=LOW, identified=LOW, verdict=NO_LEAK), ENDS),
        (Union(asr=LOW, identified=LOW, verdict=INCONCLUSIVE), ENDS),
        (Union(asr=LOW, identified=BROAD, verdict=INCONCLUSIVE), UNCLEAR),
        (Union(asr=LOW, verdict=INCONCLUSIVE), UNCLEAR),
    ],
)
def test_a_leak_ends_only_if_every_interval_lies_below_the_favorable_one(other, fate):
    assert fate_of(BOTH, other) == fate


def test_only_the_ways_by_which_the_favorable_case_leaks_count():
    read = Union(asr=HIGH, identified=BROAD, leaks_by=(READ,), verdict=LEAKS)
    assert fate_of(read, Union(asr=LOW, identified=HIGH, verdict=INCONCLUSIVE)) == ENDS


@pytest.mark.parametrize("verdict", [NO_LEAK, INCONCLUSIVE])
def test_without_a_leak_nothing_can_end(verdict):
    assert fate_of(Union(asr=HIGH, verdict=verdict), BOTH) is None
