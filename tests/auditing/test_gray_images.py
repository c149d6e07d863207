"""Gray images in three channels: a public fact that attacks use, and reports print."""

from dataclasses import replace

import pytest
import torch

from medpfl import InputError, ThreatModel
from medpfl.cli.parser import parser_of
from medpfl.core.plan import Plan
from medpfl.core.threat import GRANTS
from medpfl.core.types import Update, Weights
from medpfl.federated.server import Received
from medpfl.isolation.protocol import received_from, told_received
from tests.auditing.audit_cases import Answers, some_images, tiny


def in_color(count, tinted=False):
    data = some_images(count)
    images = data.images.repeat(1, 3, 1, 1)
    if tinted:
        images[-1, 2] *= 0.9  # one image is enough
    return replace(data, images=images)


@pytest.mark.parametrize(
    ("data", "threat", "gray"),
    [
        (in_color(4), ThreatModel(), True),
        (in_color(4), ThreatModel(gray=False), False),
        (in_color(4, tinted=True), ThreatModel(), False),
        (some_images(4), ThreatModel(), False),
    ],
    ids=["gray", "withheld", "one in color", "one channel"],
)
def test_an_attack_knows_that_images_are_gray_where_they_are(data, threat, gray):
    attack = Answers()
    report = tiny(data, attacks=[attack], threat=threat)
    assert {seen.gray for seen in attack.kept} == {gray}
    grants = ("gray",) if gray else ()
    assert {row.grants for row in report.rows} == {grants}
    assert report.settings.grants == grants


def test_the_report_prints_the_assumption(tmp_path):
    report = tiny(in_color(4), out=tmp_path / "run")
    page = (tmp_path / "run" / "share" / "report.html").read_text()
    assert GRANTS["gray"].split(":")[0] in page
    assert report.rows


def test_guesses_of_an_audit_are_gray():
    attack = Answers()
    tiny(in_color(4), attacks=["iDLG(steps=3)", attack])
    assert attack.kept[0].image_shape == (3, 16, 16)


def test_a_false_grant_is_refused():
    with pytest.raises(InputError, match="'gray' is for images with several equal channels"):
        tiny(in_color(4, tinted=True), threat=ThreatModel(("gray",)))


def test_the_option_withholds_it():
    for words, expected in (([], True), (["--gray"], True), (["--no-gray"], False)):
        given = parser_of().parse_args(["audit", "samples", *words])
        assert (given.audit.gray is not False) is expected


def test_a_separate_process_knows_it_too():
    weights = Weights({"w": torch.zeros(2)})
    for gray in (False, True):
        received = Received(weights, (Plan(),), (Update({"w": torch.ones(2)}),), False, (3, 4, 4), 2, gray=gray)
        assert received_from(told_received(received), torch.device("cpu")).gray is gray
