"""Figures are embedded in a page, in its fonts and colors; the terminal's table fits the terminal."""

import io
import re

import pytest
from rich.console import Console

from medpfl.reporting import terminal_table
from medpfl.reporting.figures.leak import leak_figure, similarity_figure
from medpfl.reporting.tables import fold
from tests.reporting.made_up import LAPLACE, cell, full, made, row

NO_LEAK = "no leak found by these attacks"
LONG = "GradientMatching(objective='cosine', prior=TotalVariation(weight=0.1), restarts=4)"
SUMMARY = [
    made(told)
    for told in (
        full(),
        full(attack=LONG, read=24),
        full(attack="DLG()", read=0, verdict="inconclusive", flags=["control-failed", "not-converged"]),
        full(defense=LAPLACE, read=0, verdict=NO_LEAK),
        full(attack="DLG()", defense=f"{LAPLACE} | TopK(keep=0.05)", read=0, verdict=NO_LEAK),
        {"attack": "iDLG()", "defense": "Sign()"},
    )
]


def ticks(svg, color):
    return len(re.findall(rf"stroke: var\(--{color}\); stroke-opacity", svg))


def printed(width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(terminal_table(SUMMARY, width))
    return console.file.getvalue()


def test_figures_take_fonts_and_colors_from_the_page():
    for svg in (leak_figure(SUMMARY), similarity_figure(SUMMARY, [row()])):
        assert svg.startswith("<svg viewBox=")
        assert 'role="img"' in svg
        assert "font-family" not in svg
        assert "<style" not in svg
        assert "xmlns" not in svg
        assert not re.search(r"#0[1-7]0[1-7]0[1-7]|#000000|#ffffff", svg)
        assert "var(--ink)" in svg


def test_leak_figure_says_the_rates_in_words():
    svg = leak_figure(SUMMARY)
    title = re.search(r"<title[^>]*>(.*?)</title>", svg)
    assert title
    assert "iDLG, no defense: 79 % and 92 %; " in title[1]
    assert "iDLG, LaplaceNoise(scale=0.01): 0 %" in title[1]


def test_only_the_rate_that_leaks_has_the_color_of_a_leak():
    """A leak by re-identification puts no red mark on 0 % reconstructed."""
    for ways, marks in ((["read"], 1), (["recognized"], 1), (["read", "recognized"], 2), ([], 0)):
        svg = leak_figure([made(full(read=0, leaks_by=ways))])
        assert len(re.findall(r"fill: var\(--leak\)", svg)) == marks
    assert ticks(similarity_figure([made(full(leaks_by=["recognized"]))], [row()]), "leak") == 0


def test_figures_share_no_id():
    ids = [set(re.findall(r'id="([^"]+)"', s)) for s in (leak_figure(SUMMARY), similarity_figure(SUMMARY, []))]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_labels_are_taken_literally():
    for label in ("A(x='$a_b$')", 'A(x=id="k", url(#k))'):
        assert f">{label}<" in leak_figure([made(full(attack=label))])


def test_a_tick_for_each_scored_row_and_at_most_200():
    rows = [row(ssim=i / 5) for i in range(5)]
    noise = [row(control="random-update"), row(ssim=None), row(flags=("zero-gradient",)), row(attack="DLG()")]
    leaking = made(full(leaks_by=["read"]))
    assert ticks(similarity_figure([leaking], rows + noise), "leak") == 5
    assert ticks(similarity_figure([leaking], [row(ssim=i / 999) for i in range(999)]), "leak") == 200


def test_negative_similarity_is_inside_the_figure():
    svg = similarity_figure([made(full())], [row(ssim=-0.4)])
    left = [float(x) for x in re.findall(r"d=\"M ([\d.-]+)", svg)]
    assert min(left) >= 0


@pytest.mark.parametrize("width", [80, 110, 118, 125, 140])
def test_terminal_table_fits_and_cuts_nothing(width):
    text = printed(width)
    assert max(map(len, text.splitlines())) <= width
    assert "\u2026" not in text
    for word in (
        "iDLG",
        LAPLACE,
        "no defense",
        "79 %",
        "58\u201393 %",
        "control-failed",
        "leaks",
        "no leak found",
    ):
        assert word in text


def test_terminal_table_takes_brackets_literally():
    table = terminal_table([made(cell(attack="A(x=['bold'])"))], 140)
    console = Console(width=140, file=io.StringIO())
    console.print(table)
    assert "A(x=['bold'])" in console.file.getvalue()


def test_terminal_table_of_nothing():
    assert terminal_table([]).row_count == 0


@pytest.mark.parametrize("width", [8, 20, 200])
def test_fold_keeps_every_letter(width):
    folded = fold(LONG, width)
    assert max(map(len, folded.splitlines())) <= width
    assert re.sub(r"\s", "", folded) == re.sub(r"\s", "", LONG)
