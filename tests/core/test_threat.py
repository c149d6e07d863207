"""A threat model's grants."""

import dataclasses

import pytest

from medpfl.core.errors import InputError
from medpfl.core.spec import build
from medpfl.core.threat import GRANTS, ThreatModel


def test_nothing_is_granted_by_default():
    assert ThreatModel().grants == ()
    assert not any(grant in ThreatModel() for grant in GRANTS)


def test_grants_are_a_set_in_one_order():
    one, other = ThreatModel(("masks", "labels", "labels")), ThreatModel().granting("labels").granting("masks")
    assert one == other
    assert hash(one) == hash(other)
    assert one.grants == ("labels", "masks")
    assert "labels" in one
    assert "order" not in one


def test_granting_leaves_the_first_as_it_was():
    honest = ThreatModel()
    honest.granting("active")
    assert "active" not in honest
    with pytest.raises(dataclasses.FrozenInstanceError):
        honest.grants = ("labels",)


@pytest.mark.parametrize("grants", [(), ("labels",), tuple(GRANTS)])
def test_spec_both_ways(grants):
    threat = ThreatModel(grants)
    assert build(repr(threat), {"ThreatModel": ThreatModel}) == threat


def test_unknown_grants():
    with pytest.raises(InputError, match="no grant 'lables'; did you mean 'labels'"):
        ThreatModel(("lables",))
    with pytest.raises(InputError, match="did you mean 'order'"):
        ThreatModel().granting("ordr")


def test_gray_images_are_known_unless_it_is_withheld():
    assert ThreatModel().knowing(gray=True).grants == ("gray",)
    assert ThreatModel(gray=False).knowing(gray=True).grants == ThreatModel().knowing(gray=False).grants == ()
    with pytest.raises(InputError, match="'gray' is for images with several equal channels"):
        ThreatModel(("gray",)).knowing(gray=False)


def test_every_grant_is_explained():
    assert all(text.startswith("the ") and len(text) > 30 for text in GRANTS.values())


def test_withholding_takes_away_what_was_granted():
    threat = ThreatModel(("labels", "defense"))
    assert threat.withholding("defense", "masks") == ThreatModel(("labels",))
    assert threat.grants == ("labels", "defense")
