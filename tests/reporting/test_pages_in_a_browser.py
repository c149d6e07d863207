"""Pages in a real browser: sorting, filters, details, the large view, keyboard, accessibility, and print."""

from __future__ import annotations

import pytest

from medpfl.core.experiments.settings import Settings
from medpfl.reporting import write_pages
from tests.reporting.browser import needs_chromium, opened, pages_in, running, serious
from tests.reporting.made_up import LAPLACE, SETTINGS, UNDEFENDED, full, picture, row, united

pytestmark = [pytest.mark.extra, needs_chromium]


@pytest.fixture(scope="module", autouse=True)
def chromium():
    with running():
        yield


ATTACKS = ("iDLG()", "DLG(steps=300)", "GradientMatching(objective=Cosine(), restarts=4, prior=TotalVariation(0.1))")
DEFENSES = (
    UNDEFENDED, LAPLACE, "TopK(keep=0.1)", "DPSGD(clip=1.0, noise=1.0)", "GaussianNoise(scale=0.001)",
    "Clipping(bound=1.0) | GaussianNoise(scale=0.01)", "QSGD(levels=4)", "Sign()", "Pruning(share=0.9)",
)  # fmt: skip
VERDICTS = ("leaks", "no leak found by these attacks", "inconclusive")
SIZES = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]


def cells(attacks=ATTACKS, defenses=DEFENSES):
    made = []
    for j, defense in enumerate(defenses):
        kind = j % 3
        for i, attack in enumerate(attacks):
            made.append(
                full(
                    attack=attack,
                    defense=defense,
                    read=(19 - i, 0, 3)[kind],
                    verdict=VERDICTS[kind],
                    identified=(0.92, 0.05, 0.2)[kind],
                    ssim=(0.91, 0.2, 0.4)[kind],
                    knows_defense=bool(j) or None,
                    leaks_by=["read"] if kind == 0 else [],
                    flags=[] if kind == 0 else ["too-few", "not-converged"],
                )
            )
    return made


def rows_of(summary, count):
    return [
        row(
            one["attack"],
            one["defense"],
            ssim=(k + 1) / count * one["ssim"],
            image=f"{k:04d}",
            grants=("defense",) if one.get("knows_defense") else (),
        )
        for one in summary
        for k in range(count)
    ]


ABOUT = {"title": "Chest CT, second round", "site": "Example Hospital", "contact": "dpo@example.org", "alias": "ct-1"}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Return the folder of a run with 27 cells."""
    out, summary = tmp_path_factory.mktemp("large"), cells()
    write_pages(out, Settings.of({**SETTINGS, "about": ABOUT}), united(summary), rows_of(summary, 6), (out, picture))
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return the folder of a run with 4 cells."""
    out, summary = tmp_path_factory.mktemp("small"), cells(ATTACKS[:2], DEFENSES[:2])
    write_pages(out, Settings.of({**SETTINGS, "about": ABOUT}), united(summary), rows_of(summary, 6), (out, picture))
    return out


def shares(page):
    """Return the numbers of the column Reconstructed, in percent."""
    return [int(text.split("\u00a0%")[0]) for text in column(page, 4)]


def column(page, place):
    """Return a column's texts of the lines that are shown."""
    return page.locator(f".cells > tbody:visible > tr:first-child > :nth-child({place})").all_inner_texts()


@pytest.mark.parametrize(("width", "scheme"), SIZES)
@pytest.mark.parametrize("name", ["report.html", "report-with-images.html"])
def test_axe_has_no_serious_finding(small, name, width, scheme):
    with opened(small / name, width, scheme=scheme) as page:
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert serious(page) == []


def test_axe_would_find_a_serious_fault(small):
    with opened(small / "report.html") as page:
        page.evaluate("document.querySelector('h1').style.color = '#eeeeee'")
        assert serious(page) == [("color-contrast", [["h1"]])]


@pytest.mark.parametrize("width", [1280, 768, 400, 320])
@pytest.mark.parametrize("script", [True, False])
def test_nothing_is_wider_than_the_window(large, width, script):
    with opened(large / "report-with-images.html", width, script=script) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_run_of_27_cells_stays_under_6000_pixels(large):
    for name in ("report.html", "report-with-images.html"):
        with opened(large / name) as page:
            assert page.evaluate("document.documentElement.scrollHeight") < 6000


def test_the_table_has_six_columns_that_fit(large):
    with opened(large / "report.html") as page:
        heads = page.locator(".cells thead th").all_inner_texts()
        assert [head.replace("\n", " ") for head in heads] == [
            "Attack", "Defense", "Attacker knows defense?", "Reconstructed", "Re-identified", "Verdict",
        ]  # fmt: skip
        cut = "[...document.querySelectorAll('.cells th, .cells td')].filter(one => one.scrollWidth > one.clientWidth)"
        assert page.evaluate(f"{cut}.length") == 0


def test_sorting_by_head_and_by_keyboard(large):
    with opened(large / "report.html") as page:
        button = page.get_by_role("button", name="Reconstructed")
        button.click()
        found = shares(page)
        assert found == sorted(found, reverse=True)
        assert len(set(found)) > 3
        assert page.locator(".cells th[aria-sort]").get_attribute("aria-sort") == "descending"
        button.focus()
        page.keyboard.press("Enter")
        assert shares(page) == sorted(found)
        page.get_by_label("Sort by").select_option("verdict up")
        found = [text.split("\u00a0")[1] for text in column(page, 6)]
        assert list(dict.fromkeys(found)) == ["leaks", "inconclusive", "no leak found by these attacks"]
        page.get_by_label("Sort by").select_option("")
        assert column(page, 2)[0] == "no defense"


def test_filters_apply_to_lines_and_images(large):
    with opened(large / "report-with-images.html") as page:
        assert page.locator(".filters output").inner_text() == "36 of 36 lines"
        page.get_by_label("Defense", exact=True).select_option("TopK(keep=0.1)")
        assert set(column(page, 2)) == {"TopK(keep=0.1)"}
        assert page.locator(".gallery:visible").count() == 3
        page.get_by_label("Attack", exact=True).select_option("iDLG")
        assert page.locator(".filters output").inner_text() == "1 of 36 lines"
        page.get_by_label("Verdict", exact=True).select_option("leaks")
        assert column(page, 2) == []
        assert page.locator(".gallery:visible").count() == 0
        for name in ("Attack", "Defense", "Verdict"):
            page.get_by_label(name, exact=True).select_option("")
        assert page.locator(".cells > tbody:visible").count() == 36


def test_a_line_opens_its_details_and_a_flag_its_explanation(large):
    with opened(large / "report.html") as page:
        line = page.locator(".cells > tbody").nth(4)
        summary = line.locator("summary")
        summary.focus()
        page.keyboard.press("Enter")
        assert "PSNR, dB" in line.inner_text()
        line.get_by_role("link", name="not-converged").click()
        assert page.locator("#flag-not-converged").get_attribute("open") is not None
        assert page.get_by_text("the attack ran out of steps").is_visible()


def test_without_the_script_everything_can_be_read(small):
    with opened(small / "report-with-images.html", script=False) as page:
        assert page.locator(".cells > tbody").count() == 6
        assert not page.locator(".filters").is_visible()
        assert not page.locator(".scripted").is_visible()
        page.locator(".cells summary").first.click()
        assert page.get_by_text("PSNR, dB").first.is_visible()
        page.locator(".gallery summary").first.click()
        first = page.locator(".gallery .pair img").first
        assert first.is_visible()
        assert first.evaluate("image => image.naturalWidth") == 28


def test_images_are_drawn_when_their_part_is_opened(large):
    with opened(large / "report-with-images.html") as page:
        drawn = "document.querySelectorAll('.gallery .open').length"
        loaded = "[...document.querySelectorAll('.gallery img')].filter(one => one.naturalWidth).length"
        assert page.evaluate(drawn) == page.evaluate(loaded) == 0
        assert page.locator(".gallery img:visible").count() == 0
        assert set(page.locator(".gallery img").evaluate_all("all => all.map(one => one.loading)")) == {"lazy"}
        page.locator(".gallery summary").first.click()
        assert page.locator(".gallery img:visible").count() == 12
        page.wait_for_timeout(300)
        assert 12 <= page.evaluate(loaded) < 27 * 12 / 2, "those near what is visible"
        scores = page.locator(".gallery").first.locator("figcaption").all_inner_texts()
        found = [float(text.split("SSIM ")[1].split(",")[0]) for text in scores]
        assert found == sorted(found, reverse=True)


def test_the_large_view_compares_with_a_slider_and_keeps_pixels_when_enlarged(small):
    with opened(small / "report-with-images.html") as page:
        page.locator(".gallery summary").nth(1).click()
        opener = page.locator(".gallery .open").first
        opener.focus()
        page.keyboard.press("Enter")
        viewer = page.locator("dialog.viewer")
        assert viewer.is_visible()
        sizes = viewer.locator("img").evaluate_all("all => all.map(one => [one.clientWidth, one.clientHeight].join())")
        assert len(set(sizes)) == 1, "target and guess at the same size"
        assert viewer.locator("img").first.evaluate("one => getComputedStyle(one).imageRendering") == "pixelated"
        slider = viewer.get_by_label("Slider between target and guess")
        over = viewer.locator(".over")
        assert "50%" in over.evaluate("one => getComputedStyle(one).clipPath")
        slider.focus()
        for _ in range(20):
            page.keyboard.press("ArrowRight")
        assert "70%" in over.evaluate("one => getComputedStyle(one).clipPath")
        before = viewer.locator("img").first.evaluate("one => one.clientWidth")
        zoom = viewer.get_by_label("Zoom")
        zoom.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        after = viewer.locator("img").evaluate_all("all => all.map(one => one.clientWidth)")
        assert after == pytest.approx([4 * before] * 4, rel=0.02)
        line = viewer.locator(".edge").bounding_box()["x"]
        frame = viewer.locator(".frame").last.bounding_box()
        assert (line - frame["x"]) / frame["width"] == pytest.approx(0.7, abs=0.02), "it divides what is visible"
        viewer.locator(".frame").first.evaluate("one => one.scrollTo(100, 40)")
        page.wait_for_timeout(200)
        ends = viewer.locator(".frame").evaluate_all("all => all.map(one => [one.scrollLeft, one.scrollTop])")
        assert ends == [pytest.approx([100, 40], abs=1)] * 3, "they scroll together"
        title = viewer.locator("h2").inner_text()
        viewer.get_by_role("button", name="Next").click()
        assert viewer.locator("h2").inner_text() != title
        assert serious(page) == []
        page.keyboard.press("Escape")
        assert not viewer.is_visible()
        assert page.evaluate("document.activeElement.className") == "open"


def test_values_in_figures_on_hover_and_on_focus(small):
    with opened(small / "report.html") as page:
        marks, tip = page.locator("#leak-read-1, #leak-recognized-1"), page.locator(".tip")
        assert not tip.is_visible()
        marks.first.hover()
        assert "reconstructed (95 % interval" in tip.inner_text()
        page.mouse.move(0, 0)
        marks.first.focus()
        assert tip.is_visible()
        page.keyboard.press("ArrowRight")
        assert "re-identified" in tip.inner_text()
        page.keyboard.press("Escape")
        assert not tip.is_visible()


def test_the_keyboard_reaches_the_result_first(small):
    with opened(small / "report.html") as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


def test_a_spec_from_another_party_runs_nothing(tmp_path):
    evil = "A(x='<img src=x onerror=alert(1)>')"
    summary = [full(attack=evil, defense=evil)]
    write_pages(tmp_path, Settings.of(SETTINGS), united(summary), rows_of(summary, 2), (tmp_path, picture))
    with opened(tmp_path / "report-with-images.html") as page:
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        page.get_by_label("Attack", exact=True).select_option(index=1)
        assert page.locator(".cells > tbody:visible").count() == 1
        page.locator(".gallery summary").click()
        page.locator(".gallery .open").first.click()
        assert page.locator(".viewer h2").inner_text().startswith(f"{evil}, with {evil}: image 0001")


def test_dark_mode_changes_the_paper(small):
    papers = {}
    for scheme in ("light", "dark"):
        with opened(small / "report.html", scheme=scheme) as page:
            papers[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert papers == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 23, 29)"}


@pytest.mark.parametrize("name", ["report.html", "report-with-images.html"])
def test_the_printed_form_is_one_page(large, small, name):
    for folder in (large, small):
        with opened(folder / name) as page:
            content = page.pdf(prefer_css_page_size=True)
            assert pages_in(content) == 1
