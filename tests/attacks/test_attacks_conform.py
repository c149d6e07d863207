"""Every member of ``attacks.__all__`` keeps its role's contract. One row per attack.

``test_strength.py`` tests how strong the built-in attacks are; a new attack needs no row there.
"""

import pytest

from medpfl import attacks
from medpfl.attacks import (
    APRIL,
    CPL,
    DLG,
    RGAP,
    DeepRGAP,
    GradientMatching,
    GradInv,
    Posterior,
    Separation,
    WorstCase,
    iDLG,
)
from tests.attacks.attack_contract import EVERY

ROWS = {
    "APRIL": APRIL(),
    "CPL": CPL(),
    "DLG": DLG(),
    "DeepRGAP": DeepRGAP(),
    "GradInv": GradInv(tv=1e-3),
    "GradientMatching": GradientMatching(),
    "Posterior": Posterior(),
    "RGAP": RGAP(),
    "Separation": Separation(steps=20),
    "WorstCase": WorstCase(evaluations=100),
    "iDLG": iDLG(),
}

each = pytest.mark.parametrize("attack", ROWS.values(), ids=ROWS)


def test_every_attack_has_a_row():
    assert sorted(ROWS) == sorted(attacks.__all__)
    assert all(type(attack).__name__ == name for name, attack in ROWS.items())


@pytest.mark.slow
@each
@pytest.mark.parametrize(("check", "rest"), EVERY)
def test_it_keeps_the_contract(attack, check, rest):
    check(attack, *rest)
