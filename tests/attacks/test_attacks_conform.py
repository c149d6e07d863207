"""Every member of ``attacks.__all__`` keeps what the role promises. One row an attack.

How strong the built-in attacks are is the matter of ``test_strength.py``, where a new attack needs no row.
"""

import pytest
from attack_contract import (
    PLANS,
    UNDER_A_PLAN,
    WHOLE,
    check_it_runs_on_the_device_of_the_update,
    check_its_spec_builds_it,
)

from medpfl import attacks
from medpfl.attacks import APRIL, CPL, DLG, RGAP, DeepRGAP, GradientMatching, GradInv, Posterior, iDLG, matching
from medpfl.core.spec import registry

ROWS = {
    "APRIL": APRIL(),
    "CPL": CPL(),
    "DLG": DLG(),
    "DeepRGAP": DeepRGAP(),
    "GradInv": GradInv(tv=1e-3),
    "GradientMatching": GradientMatching(),
    "Posterior": Posterior(),
    "RGAP": RGAP(),
    "iDLG": iDLG(),
}

each = pytest.mark.parametrize("attack", ROWS.values(), ids=ROWS)


def test_every_attack_has_a_row():
    assert sorted(ROWS) == sorted(attacks.__all__)
    assert all(type(attack).__name__ == name for name, attack in ROWS.items())


@each
@pytest.mark.parametrize("check", WHOLE, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(attack, check):
    if check is check_its_spec_builds_it:
        check(attack, registry(attacks), registry(matching))
    else:
        check(attack)


@each
@pytest.mark.parametrize("check", UNDER_A_PLAN, ids=lambda check: check.__name__)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_it_keeps_the_contract_under_a_plan(attack, check, plan):
    check(attack, plan)


@each
@pytest.mark.parametrize("granted", [False, True], ids=["honest", "granted"])
def test_it_runs_on_the_device_that_the_update_is_on(attack, granted):
    check_it_runs_on_the_device_of_the_update(attack, granted)
