"""The lines of certificates, and of an ensemble's attacks, under a cell's numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medpfl.core.experiments.limits import CERTIFICATE
from medpfl.core.verdicts import LEAKS
from medpfl.judging.types import Cell
from medpfl.reporting.figures.selection import Certified, certified, finders, unread, unread_lines
from tests.reporting.made_up import LAPLACE, UNDEFENDED, cell, row
from tests.reporting.test_pages import Page, assert_only_its_own_script, pages

CELL = Cell(attack="iDLG()", defense=UNDEFENDED)


def updates(*texts, images=2, **more):
    """Return the rows of updates with these certificates, with `images` each; later updates have the worse guesses."""
    return [
        row(victim=v, position=i, image=f"{v}-{i}", ssim=0.9 - v / 10, certificate=text, **more)
        for v, text in enumerate(texts)
        for i in range(images)
    ]


def random(*texts):
    return updates(*texts, control="random-update")


def test_each_text_is_shown_once_in_the_order_of_the_updates():
    found = certified(CELL, updates("rank 3", "rank 2", "", "rank 3") + random("", ""))
    assert found.texts == ("rank 3", "rank 2")
    assert found.note == "The attack gave one for 3 of 4 updates, and for 0 of 2 random updates."


def test_at_most_three_texts_are_shown_and_the_others_are_counted():
    found = certified(CELL, updates(*(f"rank {i}" for i in range(5)))[::-1])
    assert found.texts == ("rank 0", "rank 1", "rank 2")
    assert found.note == "The attack gave one for 5 of 5 updates. See findings.jsonl for 2 further texts."
    assert certified(CELL, updates("a", "b", "c", "d")).note.endswith("See findings.jsonl for 1 further text.")
    assert "See" not in certified(CELL, updates("a", "b", "c")).note


def test_an_attack_that_certifies_random_numbers_is_not_to_be_relied_on():
    found = certified(CELL, updates("sure") + random("sure", ""))
    assert found.note == (
        "The attack gave one for 1 of 1 update, and for 1 of 2 random updates, which hold no image, so do not rely "
        "on it."
    )


@pytest.mark.parametrize(
    "other",
    [
        {"attack": "DLG()"},
        {"defense": LAPLACE},
        {"control": "random-update"},
        {"control": "masked-vector"},
        {"flags": ("zero-gradient",)},
        {"certificate": ""},
        {"certificate": "  "},
    ],
    ids=str,
)
def test_only_the_cell_s_own_updates_count(other):
    more = row(image="other", victim=9, **{"certificate": "of another cell", **other})
    assert certified(CELL, [more]) == Certified()
    assert certified(CELL, [*updates("sure"), more]).texts == ("sure",)


def test_naive_and_adaptive_attacks_have_their_own():
    rows = updates("blind", defense=LAPLACE) + updates("told", defense=LAPLACE, grants=("defense",))
    for knows, text in ((False, "blind"), (True, "told")):
        own = Cell(attack="iDLG()", defense=LAPLACE, knows_defense=knows)
        assert certified(own, rows).texts == (text,)


def test_a_page_shows_them_under_the_row_that_they_belong_to(tmp_path):
    summary = [cell(), cell(defense=LAPLACE)]
    rows = updates("9 zeros, 2 by chance", "rank 3") + updates("", defense=LAPLACE) + random("")
    for html in pages(tmp_path, summary, rows=rows):
        words = Page(html[html.index("<table") : html.index("</table>")] + "</table>").words
        assert words.count("Certificate: ") == 2
        first, second = words.index("Certificate: 9 zeros, 2 by chance"), words.index("Certificate: rank 3")
        assert words.index("no defense") < first < second < words.index("0 of 1 random update.")
        assert second < words.index("LaplaceNoise(scale=0.01)", first), "before the next row"
    bare = pages(tmp_path, summary, rows=updates(""))[0]
    assert "Certificate:" not in bare


def test_a_row_spans_the_whole_table(tmp_path):
    html = pages(tmp_path, [cell()], rows=updates("sure"))[0]
    assert f'<td role="cell" colspan="{html.count("columnheader")}">' in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert('1')</script>", "<script>alert('1')</script>"),
        ("a\nb\x1b[2J\u202e", "a?b?[2J?"),
        ("x" * 100_000, "x" * CERTIFICATE),
    ],
    ids=["tags", "characters", "length"],
)
def test_a_certificate_from_another_party_s_file_is_escaped_and_cut(tmp_path, text, shown):
    """Rows that this version makes hold none of these, but a run directory may come from elsewhere."""
    for html in pages(tmp_path, [cell()], rows=updates(text)):
        assert_only_its_own_script(html)
        assert f"Certificate: {shown}The attack gave" in Page(html).words


def test_an_ensemble_s_attacks_are_counted_the_commonest_first():
    rows = [*updates("", found_by="iDLG()"), *updates("", images=3, found_by="RGAP()")]
    other = updates("", found_by="DLG()", defense=LAPLACE)
    assert finders(CELL, [*rows, *other]) == "RGAP (3 images); iDLG (2 images)"
    assert finders(CELL, updates("", images=1, found_by="iDLG()")) == "iDLG (1 image)"
    assert finders(CELL, updates("sure")) == ""


def test_a_page_shows_an_ensemble_s_attacks_and_only_an_ensemble_s(tmp_path):
    shown = pages(tmp_path, [cell()], rows=updates("", found_by="<b>Own()</b>"))
    assert all("Found by: <b>Own</b> (2 images)" in Page(html).words for html in shown)
    assert all("Found by" not in html for html in pages(tmp_path, [cell()], rows=updates("")))


def blind(*reasons, **more):
    """Return the rows of updates of which nothing was read, for these reasons, with two images each."""
    return [own for v, why in enumerate(reasons) for own in updates(*[""] * (v + 1), unread=why, **more)[2 * v :]]


def test_reasons_why_nothing_was_read_are_counted_by_update_the_commonest_first():
    assert unread(CELL, blind("", "noise", "dead", "noise")) == "3 of 4 updates (noise; dead)"
    assert unread(CELL, blind("a", "b", "c", "d")) == "4 of 4 updates (a; b; c; ...)"
    assert unread(CELL, blind("", "") + blind("noise", defense=LAPLACE) + blind("noise", control="random-update")) == ""


def test_a_page_shows_them_and_the_terminal_where_the_verdict_is_inconclusive(tmp_path):
    told = "Without a search, nothing was read of 1 of 2 updates (<b>noise</b>)."
    shown = pages(tmp_path, [cell()], rows=blind("<b>noise</b>", ""))
    assert all(told in Page(html).words for html in shown)
    assert all("Nothing was read" not in html for html in pages(tmp_path, [cell()], rows=blind("")))
    one = Cell(attack="iDLG()", defense=LAPLACE, knows_defense=False)
    rows = blind("noise", defense=LAPLACE)
    told = rows + blind("noise", defense=LAPLACE, grants=("defense",))
    assert unread_lines([one, replace(one, knows_defense=True)], told) == [
        "iDLG, LaplaceNoise(scale=0.01): without a search, nothing was read of 1 of 1 update (noise)"
    ]
    assert unread_lines([replace(one, union=replace(one.union, verdict=LEAKS))], rows) == []
