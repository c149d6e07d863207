"""A frontier's page, table and figure from made-up points: every gap is a dash, every state has its text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.reporting.figures.frontier import family, frontier_figure
from medpfl.reporting.frontier import frontier_table, how_to_read, sentences, write_frontier_page
from medpfl.reporting.page.advice import of_frontier

METRICS = ("asr", "ssim", "identified")


def point(defense: str, value: float | None, accuracy: float | None, **more: Any) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for name in METRICS:
        ends = (None, None) if value is None else (max(value - 0.1, 0), value + 0.05)
        scores |= {name: value, f"{name}_low": ends[0], f"{name}_high": ends[1], f"{name}_end": ends[1]}
    ends = (None, None) if accuracy is None else (accuracy - 0.1, accuracy + 0.05)
    kept = {
        "defense": defense, "accuracy": accuracy, "accuracy_low": ends[0], "accuracy_high": ends[1],
        "accuracies": [accuracy], "interval": "images", "loss": None if accuracy is None else 0.9 - accuracy,
        "verdict": NO_LEAK, "label_verdict": None, "flags": [], "unbeaten": list(METRICS),
        "epsilon": None, "delta": 1e-5, "gap": None, "bound": None, "images": 32, "updates": 32,
        "images_per_update": 1,
    }  # fmt: skip
    return {**kept, **scores, **more}


POINTS = [
    point("NoDefense()", 0.95, 0.9, verdict=LEAKS),
    point("DPSGD(clip=1.0, noise=1.0)", 0.0, 0.8, epsilon=(("image", 3.25),)),
    point("TopK(keep=0.1) | <b>()", 0.4, 0.7, unbeaten=[], verdict=LEAKS),
    point("GaussianNoise(scale=9)", None, None, gap="the training diverged", verdict=INCONCLUSIVE, unbeaten=[]),
]
CHOSEN = {
    "state": "recommended",
    "limits": ["asr<=0.1"],
    "defense": POINTS[1]["defense"],
    "inconclusive": [],
    "leaking": [],
    "updates_needed": None,
    "images_needed": None,
    "chance": 0.5,
}
SETTINGS: dict[str, Any] = {
    "judged": "test", "images_per_update": 1, "batch_size": 1, "round": 0, "seeds": 1, "notes": ["a <i>note</i>"],
    "experiment": {"model": "M"}, "versions": {"medpfl": "1"},
}  # fmt: skip


@pytest.mark.slow
def test_the_page_holds_three_figures_the_limit_s_first_and_a_row_for_each_setting(tmp_path):
    chosen = {**CHOSEN, "limits": ["ssim<=0.3"]}
    page = write_frontier_page(tmp_path, SETTINGS, POINTS, chosen).read_text()
    assert re.findall(r'id="(frontier-\w+)-title"', page) == ["frontier-ssim", "frontier-asr", "frontier-identified"]
    assert page.count('data-label="No."') == 4
    assert "&lt;b&gt;" in page
    assert "<i>" not in page
    assert "<img" not in page
    assert "nan" not in page.lower().replace("name", "")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert page.count("recommended<") + page.count("recommended; Pareto-optimal") == 1


def test_the_table_has_gaps_as_dashes_and_marks():
    table = frontier_table(POINTS, CHOSEN)
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    assert columns[0] == ["0\n*", "1\n*\u2192", "2\n", "3\n"]
    assert columns[2] == [
        "90 %\n80\u201395 %",
        "80 %\n70\u201385 %",
        "70 %\n60\u201375 %",
        "\u2013\nthe training diverged",
    ]
    assert columns[3] == ["0.0", "10.0", "20.0", "\u2013"]
    assert columns[7] == ["\u2013", "3.25\n(image)", "\u2013", "\u2013"]


def test_the_recommendation_says_its_price_and_what_still_leaks():
    first, second = sentences(POINTS, CHOSEN, SETTINGS)
    assert "balanced accuracy of 90 % (95 % interval 80\u201395 %) on the test images" in first
    assert "reconstructs 95 % (95 % interval 85\u2013100 %)" in first
    assert second.startswith(
        "Recommended under asr<=0.1: DPSGD(clip=1.0, noise=1.0) (epsilon 3.25 for one image). It costs the least "
        "accuracy: its model has a balanced accuracy of 80 % (95 % interval 70\u201385 %), 10.0 points less than "
        "without a defense. The strongest attack still reconstructs 0 % (95 % interval 0\u20135 %)"
    )
    assert "others may not" in second
    better = [POINTS[0], {**POINTS[1], "loss": -0.02}]
    assert "2.0 points more than without a defense" in sentences(better, CHOSEN, SETTINGS)[1]
    unknown = [POINTS[0], {**POINTS[1], "loss": None}]
    assert "85 %). The strongest" in sentences(unknown, CHOSEN, SETTINGS)[1]
    assert "the audit's verdict is that it leaks" not in second
    assert "labels" not in second
    assert "Left out" not in second
    beside = sentences(POINTS, {**CHOSEN, "inconclusive": ["Permute()"]}, SETTINGS)[1]
    assert "Left out: Permute (the verdict is inconclusive)." in beside
    telling = [POINTS[0], {**POINTS[1], "label_verdict": LEAKS}]
    assert "Labels still leak; no limit covers them." in sentences(telling, CHOSEN, SETTINGS)[1]
    unchecked = [POINTS[0], {**POINTS[1], "flags": ["disclosure-unchecked"]}]
    assert "was not checked (disclosure-unchecked)" in sentences(unchecked, CHOSEN, SETTINGS)[1]
    leaking = [POINTS[0], {**POINTS[1], "verdict": LEAKS}]
    assert "It meets this limit, but the audit's verdict is that it leaks." in sentences(leaking, CHOSEN, SETTINGS)[1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"state": "nothing learned"},
            "may have learned nothing (too few images score it). Its balanced accuracy is 90 %",
        ),
        ({"state": "nothing learned", "chance": 0.9}, "the undefended model has learned nothing. Its balanced"),
        ({"state": "control failed"}, "A failed attack does not mean safety"),
        ({"state": "too few", "updates_needed": 36, "images_needed": 144}, "Attack 36 updates or more (--images 144)."),
        (
            {"state": "none"},
            "Nothing is recommended: no setting meets asr<=0.1 at the upper end of the",
        ),
        (
            {"state": "none", "inconclusive": ["GaussianNoise(scale=9)"]},
            "; GaussianNoise(scale=9) would, but the verdict is ",
        ),
        ({"state": "none", "leaking": ["Signs()"]}, "; Signs would, but its own audit finds a leak (--accept-leak)."),
    ],
)
def test_every_other_state_recommends_nothing(more, words):
    said = sentences(POINTS, {**CHOSEN, "defense": None, **more}, SETTINGS)[1]
    assert words in said
    assert "Recommended under" not in said


def test_the_reason_for_an_inconclusive_verdict_is_said():
    bare, first, *rest = POINTS
    unused = {**first, "verdict": "inconclusive", "flags": ["naive-attack", "not-converged", "disclosure-unused"]}
    chosen = {**CHOSEN, "defense": None, "state": "none", "inconclusive": [first["defense"]]}
    said = sentences([bare, unused, *rest], chosen, SETTINGS)[1]
    assert "(these attacks failed, but they made no use of what the defense discloses)" in said
    advice = of_frontier([bare, unused, *rest], chosen)
    named = "DPSGD(clip=1.0, noise=1.0) keeps the leak within the limit, but the verdict is inconclusive."
    assert advice.answer[0] == f"Unknown: {named}"
    assert "Leave out --attack" in advice.steps[0].text
    assert of_frontier(POINTS, {**chosen, "inconclusive": []}).answer[0].startswith("None of the settings")


def test_searches_that_stopped_at_their_budget_are_not_said_to_fail():
    chosen = {**CHOSEN, "defense": None, "state": "control failed"}
    for flags, why, step in (
        ([], "Unknown: these attacks do not work on this model even without a defense.", "Use attacks that work"),
        (["out-of-budget"], "Not decided: the searches had too small a budget", "Let the searches run longer"),
    ):
        points = [{**POINTS[0], "flags": flags}, *POINTS[1:]]
        advice = of_frontier(points, chosen)
        assert advice.answer[0].startswith(why)
        assert advice.steps[0].text.startswith(step)
        assert ("nothing is decided" in sentences(points, chosen, SETTINGS)[1]) is bool(flags)


def test_what_the_intervals_are_of_is_said():
    assert "for one training. Its interval covers the choice of images only" in how_to_read(SETTINGS)[2]
    assert "the mean over 3 seeds with Student's interval" in how_to_read({**SETTINGS, "seeds": 3})[2]
    assert "on the untrained model" in how_to_read(SETTINGS)[0]
    assert "favors DPSGD" not in how_to_read(SETTINGS)[0]
    assert "a gradient averages up to 32 images" in how_to_read({**SETTINGS, "batch_size": 32})[0]
    assert (
        "of 4 images each, on the model after round 5"
        in how_to_read({**SETTINGS, "round": 5, "images_per_update": 4})[0]
    )
    over = {**POINTS[0], "interval": "seeds", "accuracies": [0.9, 0.9, 0.9]}
    assert "(95 % interval 80\u201395 %, over 3 seeds)" in sentences([over, *POINTS[1:]], CHOSEN, SETTINGS)[0]


def drawn(monkeypatch, chosen: dict[str, Any], points=POINTS) -> Any:
    """Return the figure's axes, before they become SVG."""
    kept = []
    monkeypatch.setattr("medpfl.reporting.figures.frontier.inline", lambda figure, *_: kept.append(figure))
    frontier_figure(points, chosen, "asr")
    return kept[0].axes[0]


def test_the_figure_marks_what_is_unbeaten_recommended_and_the_limit(monkeypatch):
    axes = drawn(monkeypatch, CHOSEN)
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["0", "1", "recommended: DPSGD(clip=1.0, noise=1.0)"], "beaten: it bears no number"
    marks = [line for line in axes.lines if line.get_marker() in "osD^v" and line.get_markersize() == 7]
    assert [(m.get_xdata()[0], m.get_ydata()[0]) for m in marks] == [(0.9, 0.95), (0.8, 0.0), (0.7, 0.4)]
    filled = [m.get_markerfacecolor() == m.get_markeredgecolor() for m in marks]
    assert filled == [True, True, False]
    assert len({m.get_marker() for m in marks}) == 3
    ring = [line for line in axes.lines if line.get_markersize() == 15]
    assert [(r.get_xdata()[0], r.get_ydata()[0]) for r in ring] == [(0.8, 0.0)]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [[0.1, 0.1]]
    stairs = [line for line in axes.lines if line.get_drawstyle() == "steps-pre"]
    assert [(list(s.get_xdata()), list(s.get_ydata())) for s in stairs] == [([0.8, 0.9], [0.0, 0.95])]


def test_points_that_lie_together_share_a_label_and_what_is_unbeaten_lies_on_top(monkeypatch):
    near = point("DPSGD(clip=1.0, noise=2.0)", 0.01, 0.81)
    axes = drawn(monkeypatch, CHOSEN, [*POINTS, near])
    assert [text.get_text() for text in axes.texts][:2] == ["0", "1, 4"]
    marks = [line for line in axes.lines if line.get_markersize() == 7 and line.get_marker() != "None"]
    assert marks[1].get_zorder() > marks[2].get_zorder()
    paths = [line for line in axes.lines if line.get_linewidth() == 0.7]
    assert [list(path.get_xdata()) for path in paths] == [[0.9], [0.8, 0.81], [0.7], []]


def test_another_metric_s_limit_is_not_drawn(monkeypatch):
    axes = drawn(monkeypatch, {**CHOSEN, "limits": ["ssim<=0.2"], "defense": None})
    assert not [line for line in axes.lines if line.get_linestyle() == "--" or line.get_markersize() == 15]


def test_a_family_is_the_names_of_the_parts():
    assert family("TopK(keep=0.1) | Sign()") == "TopK | Sign"
    assert family("NoDefense()") == "no defense"
