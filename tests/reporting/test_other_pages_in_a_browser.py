"""The pages of a frontier, of leakage, of a realism meter, of a training, of a model and so on in a real browser."""

from __future__ import annotations

import pytest

from medpfl.core.records.view import RecordView
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS
from medpfl.inspection.check import check_model
from medpfl.reporting.federation import write_federation_page
from medpfl.reporting.frontier import write_frontier_page
from medpfl.reporting.leakage import write_leakage_page
from medpfl.reporting.model_page import write_model_page
from medpfl.reporting.page.comparison import write_comparison
from medpfl.reporting.page.realism import write_realism_page
from medpfl.reporting.record_page import write_page as write_record_page
from medpfl.reporting.training import write_training_page
from tests.reporting.browser import needs_chromium, opened, running, serious
from tests.reporting.made_up import LAPLACE, full
from tests.reporting.test_bound_page import cell as bounded_cell
from tests.reporting.test_bound_page import placed
from tests.reporting.test_comparison import HOLDING, LEAKING
from tests.reporting.test_federation_page import overview
from tests.reporting.test_frontier_page import CHOSEN, POINTS, point
from tests.reporting.test_frontier_page import SETTINGS as FRONTIER
from tests.reporting.test_leakage_page import rounds
from tests.reporting.test_realism_page import MIXED
from tests.reporting.test_training_page import SETTINGS as TRAINING
from tests.reporting.test_training_page import row

pytestmark = [pytest.mark.extra, needs_chromium]


@pytest.fixture(scope="module", autouse=True)
def chromium():
    with running():
        yield


def frontier(out):
    bound = placed([bounded_cell(2)])[0]
    more = [point(f"TopK(keep={keep})", keep, 0.85 - keep / 9, unbeaten=[], bound=bound) for keep in (0.3, 0.1, 0.03)]
    return write_frontier_page(out, FRONTIER, [*POINTS, *more], CHOSEN)


def leakage(out):
    cells = [
        {
            "round": number,
            "balanced_accuracy": 0.5 + number / 50,
            **full(attack=attack, defense=defense, read=20 - number),
        }
        for number in (0, 5, 10, 20)
        for attack, defense in (("iDLG()", "NoDefense()"), ("GradInv()", "NoDefense()"), ("iDLG()", LAPLACE))
    ]
    return write_leakage_page(out, FRONTIER, rounds(cells))


def realism(out):
    return write_realism_page(out, FRONTIER, MIXED)


def training(out):
    return write_training_page(out, TRAINING, [row(n, epsilon=(("image", n / 3),)) for n in range(12)])


def model(out):
    write_model_page(out / "model.html", check_model("LeNet('idlg')", (1, 32, 32), 2).to_dict())
    return out / "model.html"


def comparison(out):
    return write_comparison(out / "compare.html", [LEAKING, HOLDING])


def federation(out):
    over = overview(INCONCLUSIVE, INCONCLUSIVE, LEAKS, without_truth=2)
    return write_federation_page(out / "federation.html", {}, over, lambda name: f"{name}.html")


def record(out):
    view = RecordView(
        verdict="wrong",
        finding="the learning rate is not 0.1",
        difference=0.4,
        contents={"parameters": "16,330", "plan": "Plan(learning_rate=0.1)"},
        steps=("1 step on 8 images",),
        facts=("the labels agree",),
        open=("the order of the images",),
    )
    write_record_page(out / "record.html", view)
    return out / "record.html"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
@pytest.mark.parametrize(
    "make",
    [frontier, leakage, realism, training, model, comparison, federation, record],
    ids=lambda make: make.__name__,
)
def test_a_page_fits_says_what_to_do_next_and_has_no_serious_finding(tmp_path, make, width, scheme):
    with opened(make(tmp_path), width, scheme=scheme) as page:
        assert page.locator("h1").inner_text().endswith("?")
        assert page.locator(".verdict h2").inner_text() in ("Answer", "Verdict")
        assert page.locator(".steps li").count() > 0
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert serious(page) == []


def test_the_frontier_is_one_large_chart_that_names_the_recommended_setting(tmp_path):
    with opened(frontier(tmp_path)) as page:
        charts = page.locator("figure.large svg:visible")
        assert charts.count() == 1
        assert charts.first.bounding_box()["width"] > 900
        assert "recommended: DPSGD(clip=1.0, noise=1.0)" in charts.first.text_content()
        sizes = charts.locator("text").evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
        assert min(size for size in sizes if size) > 10
        page.locator("#frontier-asr-setting-1").focus()
        assert "balanced accuracy 80" in page.locator(".tip").inner_text()


def test_leakage_over_rounds_is_two_charts_whose_marks_do_not_overlap(tmp_path):
    with opened(leakage(tmp_path)) as page:
        assert page.locator("figure svg:visible").count() == 2
        marks = page.locator("figure").first.locator(".mark")
        boxes = [marks.nth(i).bounding_box() for i in range(marks.count())]
        assert len(boxes) == 12
        places = {(round(box["x"]), round(box["y"])) for box in boxes}
        assert len(places) == 12


def test_a_comparison_filters_by_run(tmp_path):
    with opened(comparison(tmp_path)) as page:
        page.get_by_label("Run", exact=True).select_option("run 2")
        assert page.locator(".cells > tbody:visible").count() == 1


def test_charts_are_printed(tmp_path):
    with opened(frontier(tmp_path), media="print") as page:
        assert page.locator("figure.large svg").first.is_visible()
